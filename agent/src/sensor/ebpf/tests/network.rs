//! connect, accept, listen, DNS; all on loopback.

use super::*;
use crate::event::{Connect, DnsPacket, Transport};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

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

#[test]
fn a_question_and_its_answer_are_laid_to_the_asking_process() {
    // Any address of 127.0.0.0/8 is loopback; this one is nobody's resolver.
    let server = UdpSocket::bind("127.53.53.53:53").unwrap();
    let mut running = Running::start(everything());
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06tasuki\x04test\x00\x00\x01\x00\x01";
    client.send_to(question, server.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 64];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    let mut answer = buffer[..length].to_vec();
    answer[2] |= 0x80;
    answer.resize(700, 7);
    server.send_to(&answer, from).unwrap();
    let mut buffer = [0; 1024];
    assert_eq!(client.recv(&mut buffer).unwrap(), 700);
    let mut find = |answer: bool| {
        running.wait("DNS message", |event| match &event.kind {
            EventKind::Dns(packet) if packet.answer == answer && packet.payload.starts_with(b"\x12\x34") => {
                Some((pid(event), (**packet).clone(), event.cgroup))
            }
            _ => None,
        })
    };
    let (asker, asked, cgroup) = find(false);
    assert_eq!(asker, me());
    let expected = DnsPacket {
        server: server.local_addr().unwrap(),
        client: client.local_addr().unwrap().ip(),
        answer: false,
        payload: question.to_vec(),
    };
    // The unbound address is 127.0.0.1 on the wire.
    assert_eq!(asked, expected);
    let (receiver, answered, same) = find(true);
    assert_eq!((receiver, same), (me(), cgroup), "the answer comes in an interrupt, and is the asker's");
    assert_eq!(answered, DnsPacket { answer: true, payload: answer[..512].to_vec(), ..expected });
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
