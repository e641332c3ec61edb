#!/bin/sh
# cargo's RUSTC_WORKSPACE_WRAPPER: compiles what is fuzzed with the counters that libFuzzer steers by, and nothing else.
# These are options of LLVM's, which a stable rustc passes on.
set -eu
case "${CARGO_CRATE_NAME:-}" in
smtp_sentinel | fuzz_*)
    set -- "$@" -Copt-level=1 -Ccodegen-units=4 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
esac
exec "$@"
