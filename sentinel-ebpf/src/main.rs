//! The BPF programs, one file a probe. Compiled for bpfel-unknown-none by sentinel/build.rs.
//!
//! For any other target this is an empty program with the same modules in it, so that clippy can look at them:
//! `cargo clippy -p sentinel-ebpf --features programs`.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(
    unsafe_code,
    reason = "BPF reads kernel memory and map values through raw pointers"
)]

mod conns;
mod greeting;
mod maps;
mod overflow;
mod sock;
mod sources;
mod state;

/// bpf_probe_read_kernel and the other tracing helpers are refused to programs that are not GPL-compatible.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never runs: the verifier refuses a program that could reach it.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
