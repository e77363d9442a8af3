#!/usr/bin/env bash
# Installs what Tasuki's build, tests and demo need on Debian 12, and says what and why first.
# Safe to repeat: where everything is there, it does nothing and says nothing.
#
# usage: tools/setup.sh build | demo | demo-kubernetes | test | bench
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
. tools/packages.sh

goal="${1:-build}"
case "$goal" in
    build | demo | demo-kubernetes | test | bench) ;;
    *) echo "usage: tools/setup.sh build|demo|demo-kubernetes|test|bench" >&2; exit 2 ;;
esac

# A cargo of at least 1.95 on PATH.
rust_is_there() {
    command -v cargo >/dev/null && command -v rustc >/dev/null &&
        [ "$(printf '%s\n1.95.0\n' "$(rustc --version | cut -d' ' -f2 | cut -d- -f1)" | sort -V | head -1)" = 1.95.0 ]
}

packages "compiling and linking" gcc libc6-dev make git ca-certificates pkg-config
rust_is_there || packages "the Rust toolchain" cargo-web rustc-web libstd-rust-web-dev
rust_is_there || die "cargo on PATH is older than 1.95 ($(cargo --version)); update it, or put /usr/bin first on PATH"
# The kernel programs are compiled for a target of their own, by Debian's toolchain, whose core
# library for BPF is prebuilt.
packages "compiling the kernel programs" cargo-web rustc-web libstd-rust-web-dev-bpf llvm-22-dev libpolly-22-dev libzstd-dev zlib1g-dev

if ! command -v bpf-linker >/dev/null; then
    say "Building bpf-linker 0.13.0 (links the kernel programs; about a minute)"
    PATH="/usr/lib/llvm-22/bin:$PATH" LLVM_PREFIX=/usr/lib/llvm-22 CARGO_TARGET_DIR="$TASUKI_CACHE/tools-target" \
        cargo install --quiet --locked bpf-linker --version 0.13.0 --no-default-features --features llvm-22 --root "$TASUKI_CACHE/tools" \
        || die "bpf-linker did not build; see the messages above"
    rm -rf "$TASUKI_CACHE/tools-target"
fi
[ "$goal" = build ] && exit 0

packages "running tasks as real containers" docker.io iptables iproute2 busybox-static
[ "$goal" = demo ] && exit 0
if [ "$goal" = bench ]; then
    packages "measuring what others pay" redis-server redis-tools util-linux
    exit 0
fi

tools/kubernetes.sh
[ "$goal" = demo-kubernetes ] && exit 0

command -v cargo-clippy >/dev/null || packages "lints" rust-web-clippy
command -v rustfmt >/dev/null || packages "format check" rustfmt-web
packages "contract tests with the AWS CLI and botocore" python3 python3-venv
packages "tests that signal and trace processes" procps strace util-linux
packages "tests of clocks that differ" faketime
[ "$(uname -m)" != x86_64 ] || packages "tests of the kernel programs on other kernels" qemu-system-x86 cpio binutils
[ -z "${TASUKI_ADVISORY_DB:-}" ] || packages "unpacking the advisory database" xz-utils
if ! command -v cargo-deny >/dev/null; then
    say "Building cargo-deny (licences, advisories, sources; a few minutes)"
    CARGO_TARGET_DIR="$TASUKI_CACHE/tools-target" cargo install --quiet --locked cargo-deny --version 0.20.2 --root "$TASUKI_CACHE/tools" \
        || die "cargo-deny did not build; see the messages above"
    rm -rf "$TASUKI_CACHE/tools-target"
fi
