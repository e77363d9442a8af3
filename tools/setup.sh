#!/usr/bin/env bash
# Installs what Tasuki's build, tests and demo need on Debian 12, and says what and why first.
# Safe to repeat: where everything is there, it does nothing and says nothing.
#
# usage: tools/setup.sh build | demo | test | bench
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh

goal="${1:-build}"
case "$goal" in build | demo | test | bench) ;; *) echo "usage: tools/setup.sh build|demo|test|bench" >&2; exit 2 ;; esac

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

# The packages named, where they are not installed; `why` is shown before anything is done.
packages() {
    local why="$1" missing=()
    shift
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get >/dev/null || die "$why needs: ${missing[*]}. This script knows Debian's apt only; install them and run it again."
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null || die "installing ${missing[*]} needs root or sudo"
    say "Installing ${missing[*]} ($why)"
    local log
    log="$(mktemp)"
    export DEBIAN_FRONTEND=noninteractive
    if ! as_root apt-get install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
        # The lists may be absent or old.
        as_root apt-get update >"$log" 2>&1 || { cat "$log" >&2; die "apt-get update failed; is a Debian mirror reachable?"; }
        as_root apt-get install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1 || { tail -20 "$log" >&2; die "apt-get could not install: ${missing[*]}"; }
    fi
    rm -f "$log"
}

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

command -v cargo-clippy >/dev/null || packages "lints" rust-web-clippy
command -v rustfmt >/dev/null || packages "format check" rustfmt-web
packages "contract tests with the AWS CLI and botocore" python3 python3-venv
packages "tests that signal and trace processes" procps strace util-linux
[ -z "${TASUKI_ADVISORY_DB:-}" ] || packages "unpacking the advisory database" xz-utils
if ! command -v cargo-deny >/dev/null; then
    say "Building cargo-deny (licences, advisories, sources; a few minutes)"
    CARGO_TARGET_DIR="$TASUKI_CACHE/tools-target" cargo install --quiet --locked cargo-deny --version 0.20.2 --root "$TASUKI_CACHE/tools" \
        || die "cargo-deny did not build; see the messages above"
    rm -rf "$TASUKI_CACHE/tools-target"
fi
