#!/usr/bin/env bash
# Runs the tests of the ebpf sensor on kernels that are not this machine's: Debian's 6.1 and 6.12, by software
# emulation. There DNS is seen where the kernel sends and hands over datagrams, which not every kernel allows.
#
# usage: tools/kernels.sh
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

# A file system in memory: the test, what it starts, and their libraries.
pack() {
    local kernel="$1" root="$2" file
    mkdir -p "$root"/{proc,sys,dev,tmp,run,var/tmp,root,bin}
    objcopy --strip-debug "$test" "$root/test"
    cp /bin/busybox /bin/true /bin/sleep "$root/bin/"
    cp /bin/dash "$root/bin/sh"
    for file in "$root/test" "$root"/bin/{true,sleep,sh}; do
        ldd "$file" | grep -oE '/[^ ]+' | while read -r library; do
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
/test sensor::ebpf
echo "ended with $?"
$b poweroff -f
INIT
    chmod 755 "$root/init"
    (cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$root.gz"
}

boot() {
    local kernel="$1" log="$2"
    exec timeout 900 qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 1024 -nographic -no-reboot -nic none \
        -kernel "$kernel"/boot/vmlinuz-* -initrd "$log.root.gz" \
        -append "console=ttyS0 panic=-1 quiet lsm=lockdown,capability,bpf" </dev/null >"$log" 2>&1
}

test="$(cargo test --workspace --locked --lib --no-run 2>&1 | grep -oE '/[^ )]*/tasuki_agent-[0-9a-f]+' | head -1)" || true
[ -x "$test" ] || die "the agent's tests were not built; cargo test --workspace --lib --no-run says why"
logs=()
for series in linux-image-cloud-amd64 linux-image-6.12-cloud-amd64; do
    kernel "$series"
    log="$work/$(basename "$folder")"
    pack "$folder" "$log.root"
    boot "$folder" "$log" &
    logs+=("$log")
done
wait
for log in "${logs[@]}"; do
    if ! grep -q '^ended with 0' "$log" || ! grep -qE '^test result: ok\. [0-9]{2,} passed' "$log"; then
        cat "$log" >&2
        die "the ebpf sensor's tests failed on $(basename "$log")"
    fi
    say "$(basename "$log"): $(grep '^test result' "$log")"
done
