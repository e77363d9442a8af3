# Sourced by the scripts that install something: says what and why, then does it.

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
    # Lists that are old name packages that are old, or gone.
    if [ -z "${lists_are_new:-}" ]; then
        as_root apt-get update >"$log" 2>&1 || { cat "$log" >&2; die "apt-get update failed; is a Debian mirror reachable?"; }
        lists_are_new=1
    fi
    as_root apt-get install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1 || { tail -20 "$log" >&2; die "apt-get could not install: ${missing[*]}"; }
    rm -f "$log"
}
