//! Why a probe does not run.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

use crate::status::ProbeState;

/// Why a probe does not run; the text is fit for health, and says what is missing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("needs {missing}: run as root, or grant it (systemd: AmbientCapabilities=)")]
    Capability { missing: String },
    #[error("cannot read the kernel's types from {}: {reason}; the kernel must be built with CONFIG_DEBUG_INFO_BTF", path.display())]
    NoBtf { path: PathBuf, reason: String },
    #[error("this kernel has no field {field}")]
    NoField { field: &'static str },
    #[error("no cgroup2 file system is mounted: `mount -t cgroup2 none DIRECTORY`")]
    NoCgroup2,
    #[error("cannot open the cgroup2 root {}: {source}", path.display())]
    Cgroup2 { path: PathBuf, source: io::Error },
    /// The verifier's last words; the whole log is in the daemon's log at level debug.
    #[error("the kernel's verifier refused the program: {verdict}")]
    Verifier { verdict: String },
    #[error(
        "the kernel refused ({syscall}: {source}); in a user namespace or under lockdown, BPF is not to be had"
    )]
    Refused { syscall: String, source: io::Error },
    #[error("the BPF object does not fit this build: {reason}")]
    Object { reason: String },
    #[error("a BPF map failed: {0}")]
    Map(#[from] MapError),
    #[error("the program could not be put in place: {reason}")]
    Attach { reason: String },
}

impl Error {
    /// How health calls it.
    pub fn state(&self) -> ProbeState {
        match self {
            Self::Capability { .. }
            | Self::NoBtf { .. }
            | Self::NoField { .. }
            | Self::NoCgroup2
            | Self::Refused { .. } => ProbeState::Unsupported,
            Self::Cgroup2 { .. }
            | Self::Verifier { .. }
            | Self::Object { .. }
            | Self::Map(_)
            | Self::Attach { .. } => ProbeState::Broken,
        }
    }
}

impl From<EbpfError> for Error {
    fn from(error: EbpfError) -> Self {
        match error {
            EbpfError::MapError(MapError::CreateError { name, io_error }) => {
                Self::refusal(format!("creating map {name}"), io_error)
            }
            EbpfError::ProgramError(error) => error.into(),
            error => Self::Object {
                reason: with_causes(&error),
            },
        }
    }
}

impl From<ProgramError> for Error {
    fn from(error: ProgramError) -> Self {
        match error {
            ProgramError::LoadError {
                io_error,
                verifier_log,
            } => {
                let log = verifier_log.to_string();
                let verdict = verdict(&log);
                match verdict {
                    Some(verdict) => {
                        tracing::debug!(%log, "verifier log");
                        Self::Verifier {
                            verdict: verdict.to_owned(),
                        }
                    }
                    None => Self::refusal("loading a program".to_owned(), io_error),
                }
            }
            ProgramError::SyscallError(error) => Self::refusal(error.call.to_owned(), error.io_error),
            error => Self::Attach {
                reason: with_causes(&error),
            },
        }
    }
}

impl Error {
    fn refusal(syscall: String, source: io::Error) -> Self {
        if matches!(source.kind(), io::ErrorKind::PermissionDenied) {
            Self::Refused { syscall, source }
        } else {
            Self::Attach {
                reason: format!("{syscall}: {source}"),
            }
        }
    }
}

/// The line that says what was refused; after it the verifier prints statistics.
fn verdict(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 3] = ["processed ", "stack depth ", "verification time "];
    log.lines()
        .rev()
        .find(|line| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start)))
}

/// aya's own texts leave their causes out.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_is_the_last_line_before_the_statistics() {
        let log = "468: (7b) *(u64 *)(r10 -112) = r4\nR4 !read_ok\nverification time 1478 usec\nstack depth 104+0\n\
                   processed 753 insns (limit 1000000) max_states_per_insn 2 total_states 56\n\n";
        assert_eq!(verdict(log), Some("R4 !read_ok"));
        assert_eq!(verdict(""), None);
    }
}
