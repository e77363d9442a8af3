# Holds a bridge with an address for one control plane and its nodes until it is told to end.
name=""
# A container engine on this machine may refuse what crosses a bridge, nodes' packets to each other too.
crossing() { iptables --wait "$1" FORWARD -i "$name" -o "$name" -j ACCEPT; }
end() {
    [ -z "$name" ] || { crossing --delete; ip link delete "$name"; }
    kill $! 2>/dev/null
    exit 0
}
trap end TERM INT
number=1
# The control plane of a test that was killed takes a while to end.
busy() { [ -n "$(ss -Hltn src "10.201.$1.1")$(ss -Hltn src "127.201.$1.1")" ]; }
# The name is the claim: only one process can make it.
until ! busy "$number" && ip link add "tsk-test-k$number" type bridge 2>/dev/null; do
    number=$((number + 1))
    [ "$number" -le 200 ] || { echo "cannot make a bridge: $(ip link add tsk-test-k0 type bridge 2>&1)"; exit 1; }
done
name="tsk-test-k$number"
ip address add "10.201.$number.1/24" dev "$name" && ip link set "$name" up && crossing --insert || { ip link delete "$name"; exit 1; }
echo "bridge $number is up"
sleep infinity &
wait $!
