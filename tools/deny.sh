#!/usr/bin/env bash
# cargo-deny, with an advisory database fetched, or unpacked from the archive that
# TASUKI_ADVISORY_DB names where the network does not reach it.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh

if [ -z "${TASUKI_ADVISORY_DB:-}" ]; then
    exec cargo deny --locked check
fi
# The folder name is cargo-deny's own: the advisory database's name and a hash of its URL.
db="$HOME/.cache/tasuki/advisory-db/advisory-db-3157b0e258782691"
if [ ! -e "$db/.git" ] || [ "$TASUKI_ADVISORY_DB" -nt "$db/.git" ]; then
    rm -rf "$db" && mkdir -p "$db"
    tar -xf "$TASUKI_ADVISORY_DB" -C "$db" --no-same-owner
    [ -d "$db/crates" ] || { inner=("$db"/*/crates); mv "$(dirname "${inner[0]}")"/* "$db/"; }
    git -C "$db" init -q && git -C "$db" add -A
    git -C "$db" -c user.name=snapshot -c user.email=snapshot@localhost commit -qm "advisory database snapshot"
fi
# Offline it sees only what is here; the crates of other platforms are not fetched by a build.
cargo fetch --locked --quiet
exec cargo deny --locked --offline check
