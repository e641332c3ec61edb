#!/bin/sh
# cargo's RUSTC_WORKSPACE_WRAPPER: links the daemon without a loader and libraries, and changes nothing else. Which libc it
# gets is decided at the last link, so what is compiled for the ordinary program serves this one too.
set -eu
case "${CARGO_BIN_NAME:-}" in
smtp-sentinel)
    set -- "$@" -Ctarget-feature=+crt-static
    ;;
esac
exec "$@"
