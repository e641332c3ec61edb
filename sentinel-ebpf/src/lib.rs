//! The layouts that the BPF programs and userspace share.
#![no_std]
