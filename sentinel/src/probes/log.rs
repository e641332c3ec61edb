//! Carries the warnings of the BPF programs into [`tracing`].

use aya::Ebpf;
use aya_log::EbpfLogger;

/// The reading end of the programs' log: a ring of 128 KiB in shared memory, so that looking into it is no system call.
/// What does not fit, the programs drop.
pub(super) struct Drain(EbpfLogger<ToTracing>);

impl Drain {
    /// Before the programs are loaded: the log's map leaves the object here.
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, aya_log::Error> {
        EbpfLogger::init_with_logger(ebpf, ToTracing).map(Self)
    }

    /// Hands on what has come since the last time.
    pub(super) fn drain(&mut self) {
        self.0.flush();
    }
}

/// aya-log speaks to the `log` crate; this hands it on without relying on a global bridge.
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        match record.level() {
            log::Level::Error => tracing::error!(target: "bpf", "{}", record.args()),
            log::Level::Warn => tracing::warn!(target: "bpf", "{}", record.args()),
            log::Level::Info => tracing::info!(target: "bpf", "{}", record.args()),
            log::Level::Debug | log::Level::Trace => tracing::debug!(target: "bpf", "{}", record.args()),
        }
    }

    fn flush(&self) {}
}
