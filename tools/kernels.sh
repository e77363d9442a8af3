#!/usr/bin/env bash
# Runs the tests of the ebpf sensor on kernels that are not this machine's: Debian's 6.1 and 6.12, by software
# emulation. There DNS is seen where the kernel sends and hands over datagrams, which not every kernel allows.
# With `redis` it measures there what the sensor costs a server, in instructions (docs/benchmarks.md).
#
# usage: tools/kernels.sh [redis]
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
. tools/packages.sh

if [ "$(uname -m)" != x86_64 ]; then
    say "Other kernels: left out, they are prepared for x86-64 only"
    exit 0
fi

kernels="$TASUKI_CACHE/kernels"
work="$(mktemp -d)"
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# Sets `folder`: that of the newest kernel of a series, downloaded where it is not there.
kernel() {
    local name
    name="$(LC_ALL=C apt-cache depends "$1" | awk '$1 == "Depends:" { print $2; exit }')"
    [ -n "$name" ] || die "apt knows no $1: add Debian's security archive to its sources, and run apt-get update"
    folder="$kernels/$name"
    [ ! -d "$folder" ] || return 0
    say "Downloading $name (the probes are tested on it)"
    mkdir -p "$kernels"
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$name") || die "$name cannot be downloaded; run apt-get update"
    dpkg-deb -x "$work/$name"_*.deb "$work/$name.new" || die "$name cannot be unpacked; is the disk full?"
    mv "$work/$name.new" "$folder" || die "$folder cannot be written"
}

# A file system in memory: the programs that are given, their libraries, and what they stand on. What it runs comes from
# standard input.
pack() {
    local kernel="$1" root="$2" file library
    shift 2
    mkdir -p "$root"/{proc,sys,dev,tmp,run,var/tmp,var/lib,root,bin,etc}
    cp /bin/busybox /bin/true /bin/sleep "$@" "$root/bin/"
    cp /bin/dash "$root/bin/sh"
    for file in "$root"/bin/*; do
        objcopy --strip-debug "$file"
        # Nothing of what stands alone.
        for library in $(ldd "$file" 2>/dev/null | grep -oE '/[^ ]+' || true); do
            mkdir -p "$root$(dirname "$library")"
            cp -Lu "$library" "$root$library"
        done
    done
    find "$kernel/lib/modules" -name overlay.ko -o -name overlay.ko.xz | xargs -I{} cp {} "$root/"
    cat >"$root/init" <<'INIT'
#!/bin/sh
b=/bin/busybox
export PATH=/bin HOME=/root TASUKI_FENTRY=1
$b mount -t proc none /proc
$b mount -t sysfs none /sys
$b mount -t devtmpfs none /dev
$b mount -t cgroup2 none /sys/fs/cgroup
for folder in /tmp /run /var/tmp; do $b mount -t tmpfs none $folder; done
[ ! -e /overlay.ko.xz ] || $b unxz /overlay.ko.xz
$b insmod /overlay.ko
$b ip link set lo up
INIT
    cat >>"$root/init"
    echo '$b poweroff -f' >>"$root/init"
    chmod 755 "$root/init"
    (cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$root.gz"
}

boot() {
    local kernel="$1" log="$2"
    shift 2
    exec timeout 1800 qemu-system-x86_64 "$@" -cpu max -m 1024 -nographic -no-reboot -nic none \
        -kernel "$kernel"/boot/vmlinuz-* -initrd "$log.root.gz" \
        -append "console=ttyS0 panic=-1 quiet lsm=lockdown,capability,bpf" </dev/null >"$log" 2>&1
}

tests() {
    local program
    program="$(cargo test --workspace --locked --lib --no-run 2>&1 | grep -oE '/[^ )]*/tasuki_agent-[0-9a-f]+' | head -1)" || true
    [ -x "$program" ] || die "the agent's tests were not built; cargo test --workspace --lib --no-run says why"
    cp "$program" "$work/test"
    each pack_test -accel tcg,thread=multi -smp 2
    for log in "${logs[@]}"; do
        if ! grep -q '^ended with 0' "$log" || ! grep -qE '^test result: ok\. [0-9]{2,} passed' "$log"; then
            cat "$log" >&2
            die "the ebpf sensor's tests failed on $(basename "$log")"
        fi
        say "$(basename "$log"): $(grep '^test result' "$log")"
    done
}

pack_test() {
    pack "$1" "$2" "$work/test" <<'REST'
/bin/test sensor::ebpf
echo "ended with $?"
REST
}

# A clock that goes by instructions and one processor: the same work takes much the same time again.
redis() {
    local program
    for program in redis-server redis-benchmark; do
        command -v "$program" >/dev/null || die "$program is missing: apt-get install redis-server redis-tools"
    done
    cargo build --release --locked -p tasuki-agent
    cp "$CARGO_TARGET_DIR/release/tasuki-agent" "$work/"
    each pack_redis -accel tcg,thread=single -icount shift=0,sleep=off -smp 1
    for log in "${logs[@]}"; do
        if [ "$(grep -ac '^with "GET"' "$log")" != 3 ] || ! grep -aq '^fentry' "$log"; then
            cat "$log" >&2
            die "redis could not be measured on $(basename "$log")"
        fi
        say "$(basename "$log"): requests a second without and with the agent, in turn; a second is 1e9 instructions"
        tr -d '\r' <"$log" | grep -aE '^(without|with) '
    done
}

pack_redis() {
    pack "$1" "$2" "$work/tasuki-agent" "$(command -v redis-server)" "$(command -v redis-benchmark)" <<'REST'
redis-server --port 7777 --bind 127.0.0.1 --save "" --appendonly no >/dev/null &
sleep 1
run() { redis-benchmark -h 127.0.0.1 -p 7777 -t get -c 50 -n 40000 --csv | $b grep '^"GET"' | $b sed "s/^/$1 /"; }
run first
for pair in 1 2 3; do
    run without
    $b rm -f /tmp/log
    tasuki-agent run --stdout --sensor ebpf >/dev/null 2>/tmp/log &
    until $b grep -qs watching /tmp/log || ! kill -0 $!; do sleep 1; done
    run with
    kill $!
    wait $!
    $b cat /tmp/log
done
# It says so where DNS is looked for among all packets.
$b grep -q 'among all packets\|probe not attached' /tmp/log || echo fentry
REST
}

# Boots each kernel with what `$1` packs, and the rest as QEMU's options.
each() {
    local packing="$1" log
    shift
    logs=()
    for series in linux-image-cloud-amd64 linux-image-6.12-cloud-amd64; do
        kernel "$series"
        log="$work/$(basename "$folder")"
        "$packing" "$folder" "$log.root"
        boot "$folder" "$log" "$@" &
        logs+=("$log")
    done
    wait
}

case "${1:-}" in
    "") tests ;;
    redis) redis ;;
    *) die "usage: tools/kernels.sh [redis]" ;;
esac
