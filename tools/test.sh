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

step "Tests"
CLIPPY_ARGS="-Dwarnings" cargo test --workspace --locked --all-targets --no-fail-fast
