#!/usr/bin/env bash
# Every check, in the order in which a failure is cheapest to find. Nothing is skipped silently.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh

step() { printf '\033[1m==>\033[0m %s\n' "$*"; }

step "Format"
cargo fmt --all --check
(cd probes && cargo fmt --check)

step "Licences, advisories, sources"
tools/deny.sh

# Lints run as the compiler of our own crates, so that one build serves lints and tests.
step "Build with lints"
RUSTC_WORKSPACE_WRAPPER="$(command -v clippy-driver || echo "$(rustc --print sysroot)/bin/clippy-driver")"
export RUSTC_WORKSPACE_WRAPPER
CLIPPY_ARGS="-Dwarnings" cargo build --workspace --locked --all-targets

# What an interrupted test leaves: engines end by themselves, and their mounts and networks go here.
TMPDIR="$(mktemp -d /tmp/tasuki-test.XXXX)"
export TMPDIR
# Tests run programs of other users below it.
chmod 755 "$TMPDIR"
tidy() {
    local status=$?
    trap '' INT TERM
    set +e
    # An engine that was left ends with its owner; whoever holds the lock still has one.
    flock --wait 30 /tmp/tasuki-private-docker.lock true
    awk -v below="$TMPDIR/" 'index($2, below) == 1 { print $2 }' /proc/self/mounts | sort -r | $AS_ROOT xargs -r umount -l
    ip -o link show type bridge 2>/dev/null | awk -F': ' '$2 ~ /^tsk-test/ { print $2 }' | $AS_ROOT xargs -r -n1 ip link delete
    $AS_ROOT rm -rf "$TMPDIR"
    exit "$status"
}
trap tidy EXIT
trap 'exit 130' INT TERM

step "Tests"
CLIPPY_ARGS="-Dwarnings" cargo test --workspace --locked --all-targets --no-fail-fast

step "Other kernels"
CLIPPY_ARGS="-Dwarnings" tools/kernels.sh
