//! connect, accept, listen, DNS; all on loopback.

use super::*;
use crate::event::{Connect, DnsPacket, Transport};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

fn me() -> Option<u32> {
    Some(std::process::id())
}

fn pid(event: &Event) -> Option<u32> {
    event.process.map(|process| process.pid)
}

fn tcp(running: &mut Running, address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    let local = listener.local_addr().unwrap();
    let client = TcpStream::connect(local).unwrap();
    let client_address = client.local_addr().unwrap();
    listener.accept().unwrap();
    let listen = running.wait("listen", |event| match event.kind {
        EventKind::Listen { transport: Transport::Tcp, local: at } if at == local => Some(event.clone()),
        _ => None,
    });
    assert_eq!(pid(&listen), me());
    assert_eq!(listen.cgroup.map(|id| id.0), running.sensor.hierarchy().of_process(std::process::id()));
    let connect = running.wait("connect", |event| match event.kind {
        EventKind::Connect(Connect { transport: Transport::Tcp, remote, .. }) if remote == local => Some(event.clone()),
        _ => None,
    });
    assert_eq!(pid(&connect), me());
    let accept = running.wait("accept", |event| match event.kind {
        EventKind::Accept(Connect { local: Some(at), remote, .. }) if at == local && remote == client_address => {
            Some(event.clone())
        }
        _ => None,
    });
    assert_eq!(pid(&accept), me(), "the listener's process");
    assert!(listen.time < connect.time && connect.time <= accept.time);
}

#[test]
fn tcp_is_seen_from_both_sides() {
    let mut running = Running::start(everything());
    tcp(&mut running, "127.0.0.1:0");
    tcp(&mut running, "[::1]:0");
}

#[test]
fn udp_destinations_are_seen() {
    let mut running = Running::start(everything());
    let target = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut seen = |what: &str, remote: SocketAddr| {
        let event = running.wait(what, |event| match event.kind {
            EventKind::Connect(connect) if connect.transport == Transport::Udp && connect.remote == remote => {
                Some(event.clone())
            }
            _ => None,
        });
        assert_eq!(pid(&event), me(), "{what}");
    };
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(target).unwrap();
    seen("connect4", target);
    let six = UdpSocket::bind("[::1]:0").unwrap();
    let target = SocketAddr::new("::1".parse().unwrap(), 40_001);
    six.connect(target).unwrap();
    seen("connect6", target);
    let target = SocketAddr::new("127.0.0.9".parse().unwrap(), 40_002);
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", target).unwrap();
    seen("sendmsg4", target);
    let target = SocketAddr::new("::1".parse().unwrap(), 40_003);
    UdpSocket::bind("[::1]:0").unwrap().send_to(b"x", target).unwrap();
    seen("sendmsg6", target);
}

const QUESTION: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06tasuki\x04test\x00\x00\x01\x00\x01";

fn dns(running: &mut Running, answer: bool, server: SocketAddr) -> (Event, DnsPacket) {
    running.wait("DNS message", |event| match &event.kind {
        EventKind::Dns(packet) if packet.answer == answer && packet.server == server => {
            Some((event.clone(), (**packet).clone()))
        }
        _ => None,
    })
}

/// One port for the tests of both ways.
static PORT: Mutex<()> = Mutex::new(());

fn asks_and_is_answered(options: Options, server: &str, client: &str) {
    let _alone = PORT.lock().unwrap_or_else(PoisonError::into_inner);
    let server = UdpSocket::bind(server).unwrap();
    let mut running = Running::start(options);
    let client = UdpSocket::bind(client).unwrap();
    let at = server.local_addr().unwrap();
    client.send_to(QUESTION, at).unwrap();
    let mut buffer = [0; 64];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    let mut answer = buffer[..length].to_vec();
    answer[2] |= 0x80;
    answer.resize(700, 7);
    server.send_to(&answer, from).unwrap();
    let mut buffer = [0; 1024];
    // Looking at it is not taking it: it is told once.
    assert_eq!(client.peek(&mut buffer).unwrap(), 700);
    assert_eq!(client.recv(&mut buffer).unwrap(), 700);
    let (event, asked) = dns(&mut running, false, at);
    assert_eq!(pid(&event), me());
    let expected =
        DnsPacket { server: at, client: client.local_addr().unwrap().ip(), answer: false, payload: QUESTION.to_vec() };
    assert_eq!(asked, expected);
    let (second, answered) = dns(&mut running, true, at);
    assert_eq!((pid(&second), second.cgroup), (me(), event.cgroup), "the asker's");
    assert_eq!(answered, DnsPacket { answer: true, payload: answer[..512].to_vec(), ..expected });
    let again = UdpSocket::bind(SocketAddr::new(expected.client, 0)).unwrap();
    again.connect(at).unwrap();
    let other = [b"\x99", &QUESTION[1..]].concat();
    again.send(&other).unwrap();
    running.wait("question on a connected socket", |event| match &event.kind {
        EventKind::Dns(packet) => (packet.payload == other).then_some(()),
        _ => None,
    });
    let answers = |event: &&Event| matches!(&event.kind, EventKind::Dns(it) if it.answer && it.server == at);
    assert_eq!(running.seen.iter().filter(answers).count(), 1);
}

// Any address of 127.0.0.0/8 is loopback; these are nobody's resolver.
#[test]
fn a_question_and_its_answer_are_laid_to_the_asking_process() {
    asks_and_is_answered(everything(), "127.53.53.53:53", "127.0.0.1:0");
    asks_and_is_answered(everything(), "[::1]:53", "[::1]:0");
}

#[test]
fn they_are_seen_among_all_packets_too() {
    let options = || Options { dns_among_packets: true, ..everything() };
    asks_and_is_answered(options(), "127.53.53.54:53", "127.0.0.1:0");
    asks_and_is_answered(options(), "[::1]:53", "[::1]:0");
}

#[test]
fn a_question_from_a_socket_for_both_families_is_seen() {
    let server = UdpSocket::bind("127.53.53.55:53").unwrap();
    let mut running = Running::start(everything());
    let client = UdpSocket::bind("[::]:0").unwrap();
    client.send_to(QUESTION, "[::ffff:127.53.53.55]:53").unwrap();
    let (event, asked) = dns(&mut running, false, server.local_addr().unwrap());
    assert_eq!((pid(&event), asked.payload), (me(), QUESTION.to_vec()));
}

#[test]
fn a_question_in_parts_is_read_or_counted() {
    let server = UdpSocket::bind("127.53.53.56:53").unwrap();
    let mut running = Running::start(everything());
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(server.local_addr().unwrap()).unwrap();
    let in_parts = [b"\x97", &QUESTION[1..]].concat();
    let (first, second) = in_parts.split_at(20);
    let flags = nix::sys::socket::MsgFlags::from_bits_retain(libc::MSG_MORE);
    nix::sys::socket::send(client.as_raw_fd(), first, flags).unwrap();
    client.send(second).unwrap();
    // Whole, and after it.
    client.send(&[b"\x98", &QUESTION[1..]].concat()).unwrap();
    running.wait("the whole one", |event| match &event.kind {
        EventKind::Dns(packet) => packet.payload.starts_with(b"\x98").then_some(()),
        _ => None,
    });
    let read = |event: &Event| matches!(&event.kind, EventKind::Dns(packet) if packet.payload == in_parts);
    let was_read = running.seen.iter().any(read);
    let counted = running.sensor.families().into_iter().any(|family| family.counters.unreadable > 0);
    assert_ne!(was_read, counted);
}

#[test]
fn a_connections_packets_run_no_program_of_datagrams() {
    const MESSAGES: u64 = 20_000;
    let running = Running::start(everything());
    let loaded = running.sensor.loaded.as_ref().unwrap();
    if loaded.dns == Dns::Packets {
        // `dns_says_how_it_is_seen` tells whether it may be so.
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_nodelay(true).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let before: u64 = proof::runs(&loaded.ebpf).unwrap().iter().sum();
    for _ in 0..MESSAGES {
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
    }
    let after: u64 = proof::runs(&loaded.ebpf).unwrap().iter().sum();
    // Other tests send datagrams meanwhile.
    assert!(after - before < MESSAGES / 10, "{before} and then {after}");
}

#[test]
fn dns_says_how_it_is_seen() {
    let running = Running::start(everything());
    let dns = running.sensor.families().into_iter().find(|family| family.name == "dns").unwrap();
    // tools/kernels.sh says so on kernels that allow it.
    let followed = dns.hook.starts_with("fentry/ip_send_skb");
    assert!(followed || std::env::var_os("TASUKI_FENTRY").is_none(), "{}", dns.hook);
    assert_eq!(dns.tier, Some(u8::from(followed)));
    let state = running.sensor.state();
    assert!(state.whole);
    assert_eq!(state.detail.is_some_and(|detail| detail.contains("sent4: ")), !followed);
}

#[test]
fn a_repeated_destination_is_reported_once_in_the_window() {
    let options = Options { connect_window: Duration::from_secs(3600), ..everything() };
    let mut running = Running::start(options);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..5 {
        socket.send_to(b"x", "127.0.0.9:40010").unwrap();
    }
    socket.send_to(b"x", "127.0.0.9:40011").unwrap();
    let to = |event: &Event, port: u16| match event.kind {
        EventKind::Connect(connect) => pid(event) == me() && connect.remote.port() == port,
        _ => false,
    };
    running.wait("other destination", |event| to(event, 40_011).then_some(()));
    assert_eq!(running.seen.iter().filter(|event| to(event, 40_010)).count(), 1);
    let filtered = running.sensor.filtered();
    let connect = filtered.iter().find(|(name, _)| *name == "connect").unwrap();
    let duplicates = connect.1.by_name().find(|(name, _)| *name == "duplicate").unwrap().1;
    assert!(duplicates >= 4, "{duplicates}");
}
