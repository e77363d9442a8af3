# Sourced by the Makefile and by the scripts: where tools and build output are.
# Build output lives outside the checkout, so that a fresh clone builds quickly.
export TASUKI_CACHE="${TASUKI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tasuki}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$TASUKI_CACHE/target}"
export TASUKI_PROBES_TARGET="${TASUKI_PROBES_TARGET:-$TASUKI_CACHE/probes-target}"
export PATH="$TASUKI_CACHE/tools/bin:$HOME/.cargo/bin:$PATH:/usr/sbin:/sbin"

# Tests load kernel programs and start containers: they need root, the build does not.
if [ "$(id -u)" -ne 0 ]; then
    runner="CARGO_TARGET_$(uname -m | tr '[:lower:]' '[:upper:]')_UNKNOWN_LINUX_GNU_RUNNER"
    export "$runner=sudo -E"
    AS_ROOT="sudo -E"
else
    AS_ROOT=""
fi
export AS_ROOT
