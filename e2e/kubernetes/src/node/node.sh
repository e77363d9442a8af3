# Holds one node: its network, mounts and cgroups. When it is told to end, everything in them ends.
# usage: node.sh CGROUP DIRECTORY LINK BRIDGE GATEWAY ADDRESS POD_NETWORK
cgroup="$1" directory="$2" link="$3" bridge="$4" gateway="$5" address="$6" pods="$7"

hierarchies() { awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/self/mounts; }
members() {
    for hierarchy in $(hierarchies); do
        find "$hierarchy$cgroup" -name cgroup.procs -exec cat {} + 2>/dev/null
    done | sort -u
}
end() {
    trap '' TERM INT
    trap - EXIT
    # Who forks while being killed is met in the next round.
    rounds=0
    while found="$(members)" && [ -n "$found" ] && [ "$rounds" -lt 80 ]; do
        kill -KILL $found 2>/dev/null
        rounds=$((rounds + 1))
        sleep 0.05
    done
    [ -z "$found" ] || echo "still running: $found"
    rounds=0
    # The kernel lets go of a cgroup a little after its last process.
    while [ "$rounds" -lt 80 ]; do
        left=""
        for hierarchy in $(hierarchies); do
            find "$hierarchy$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null
            [ ! -d "$hierarchy$cgroup" ] || left="$left $hierarchy$cgroup"
        done
        [ -n "$left" ] || break
        rounds=$((rounds + 1))
        sleep 0.05
    done
    [ -z "$left" ] || echo "could not remove$left"
    ip link delete "$link" 2>/dev/null
    ip route delete "$pods" 2>/dev/null
    exit
}
fail() { echo "error: $1"; end; }
trap end TERM INT EXIT

for hierarchy in $(hierarchies); do
    # Hierarchies that cannot have one are none that a kubelet uses.
    mkdir -p "$hierarchy$cgroup" 2>/dev/null
done
# One hierarchy is enough to know the node's own processes by; version 2 is there on every machine but the oldest.
tracked="$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)"
[ -n "$tracked" ] || tracked=/sys/fs/cgroup/pids
mkdir -p "$tracked$cgroup/system" || fail "cannot make a cgroup"
echo "$tracked$cgroup/system/cgroup.procs" >"$directory/members"

# Inside: the usual paths of a node, but its own; nothing of it is seen outside.
inside='
set -e
echo $$ >"$(cat "$0/members")"
mount --make-rshared /
mkdir -p "$0/lib" "$0/log" "$0/sysctl"
mount --bind "$0/lib" /var/lib
mount --bind "$0/log" /var/log
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock
# What is not on the node or in its registry is not looked for in the world.
[ ! -e /etc/resolv.conf ] || mount --bind "$0/no-names" /etc/resolv.conf
# The kubelet sets these for the whole machine; here it writes into files.
for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    file="$0/sysctl/$(echo "$setting" | tr / .)"
    cat "/proc/sys/$setting" >"$file"
    mount --bind "$file" "/proc/sys/$setting"
done
echo 1 >/proc/sys/net/ipv4/ip_forward
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip address add "$1/24" dev eth0
ip link set eth0 up
ip route add default via "$2"
# Pods of the other nodes are on the same link; the machine between them may forward nothing.
network="${1%.*}"
for other in 2 3 4 5; do
    [ "$network.$other" = "$1" ] || ip route add "10.202.${network##*.}.$(((other - 2) * 64))/26" via "$network.$other"
done
echo "inside is up"
exec sleep infinity'
unshare --mount --net sh -c "$inside" "$directory" "$address" "$gateway" &
inner=$!
own="$(readlink /proc/self/ns/net)"
until theirs="$(readlink "/proc/$inner/ns/net")" && [ "$theirs" != "$own" ]; do
    kill -0 "$inner" 2>/dev/null || fail "cannot make namespaces"
    sleep 0.02
done
ip link add "$link" type veth peer name eth0 netns "$inner" || fail "cannot make a link into the node"
ip link set "$link" master "$bridge" && ip link set "$link" up || fail "cannot join the bridge"
ip route add "$pods" via "$address" || fail "cannot route to the pods"
echo "$inner" >"$directory/inner"
echo "outside is up"
wait "$inner"
fail "the inside ended"
