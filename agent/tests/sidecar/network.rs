//! The network sensor.

use crate::room::{App, Room, until};
use serde_json::Value;

fn text(line: &Value) -> &str {
    line["text"].as_str().unwrap_or_default()
}

/// A Python program that says its process id, goes on when it is told to, and then stays.
fn python(room: &Room, name: &str, script: &str) -> (App, u64) {
    let file = room.path(name);
    let script = format!(
        "import os, socket, struct, sys, time\nopen({file:?}, 'w').write(str(os.getpid()))\n\
         sys.stdin.readline()\n{script}\ntime.sleep(1000)\n"
    );
    let mut command = room.command("python3");
    let app = App(command.args(["-c", &script]).stdin(std::process::Stdio::piped()).spawn().unwrap());
    let pid = until("the program's id", || std::fs::read_to_string(&file).ok()?.parse().ok());
    (app, pid)
}

#[test]
fn connections_over_loopback_are_named_on_both_sides() {
    for (address, shown) in [("127.0.0.1", "127.0.0.1:8080"), ("::1", "[::1]:8080")] {
        let room = Room::new();
        let listen = format!(
            "s = socket.create_server(({address:?}, 8080), family=socket.AF_INET6 if ':' in {address:?} else socket.AF_INET)\n\
             open({:?}, 'w').write('x')\nkeep = s.accept()",
            room.path("listens")
        );
        let (mut server, server_pid) = python(&room, "server", &listen);
        let (mut client, client_pid) =
            python(&room, "client", &format!("keep = socket.create_connection(({address:?}, 8080))"));
        let agent = room.agent("network", &[]);
        server.go();
        until("the listener", || std::fs::read(room.path("listens")).ok());
        client.go();
        let remote = format!("remote: {shown}");
        let connect =
            agent.wait_for("the connect", |line| text(line).starts_with("Connect") && text(line).contains(&remote));
        assert_eq!(connect["pid"], client_pid);
        let local = format!("local: Some({shown})");
        let accept =
            agent.wait_for("the accept", |line| text(line).starts_with("Accept") && text(line).contains(&local));
        assert_eq!(accept["pid"], server_pid);
        let listen = agent.wait_for("the listener", |line| text(line).starts_with("Listen"));
        assert_eq!(listen["pid"], server_pid);
        assert_eq!(agent.seen(|line| text(line).contains(&remote)).len(), 1, "told once");
    }
}

#[test]
fn a_connection_from_before_the_start_is_told() {
    let room = Room::new();
    let script = format!(
        "s = socket.create_server(('127.0.0.1', 8080))\nc = socket.create_connection(('127.0.0.1', 8080))\n\
         a = s.accept()\nopen({:?}, 'w').write('x')",
        room.path("connected")
    );
    let (mut app, pid) = python(&room, "pid", &script);
    app.go();
    until("the connection", || std::fs::read(room.path("connected")).ok());
    let agent = room.agent("network", &[]);
    for kind in ["Listen", "Connect", "Accept"] {
        let line = agent.wait_for(kind, |line| text(line).starts_with(kind) && text(line).contains("127.0.0.1:8080"));
        assert_eq!(line["pid"], pid, "{kind}");
    }
}

#[test]
fn what_leaves_by_an_interface_is_seen_whenever_that_came() {
    let room = Room::new();
    let sh = |script: &str| assert!(room.command("sh").args(["-ec", script]).status().unwrap().success(), "{script}");
    // Its other end takes whatever is sent and answers nothing.
    let add = |name: &str, net: &str| {
        sh(&format!("ip link add {name} arp off type veth peer {name}-end; ip link set {name}-end up"));
        sh(&format!("ip addr add {net}.1/24 dev {name}; ip link set {name} up"));
    };
    let connect = |agent: &crate::room::Agent, to: &str| {
        let script = format!("s = socket.socket()\ns.setblocking(False)\ns.connect_ex(({to:?}, 443))");
        let (mut client, pid) = python(&room, to, &script);
        client.go();
        let is = |line: &Value| text(line).starts_with("Connect") && text(line).contains(&format!("{to}:443"));
        let line = agent.wait_for(to, is);
        assert_eq!(line["pid"], pid, "{line}");
        assert_eq!(agent.seen(is).len(), 1, "told once");
    };
    add("first", "10.9.8");
    let mut agent = room.agent("network", &[]);
    connect(&agent, "10.9.8.7");
    add("second", "10.9.9");
    connect(&agent, "10.9.9.7");
    sh("ip link del first");
    add("first", "10.9.8");
    connect(&agent, "10.9.8.8");
    // More than have sockets of their own.
    sh("for i in $(seq 35); do ip link add many$i type veth peer end$i; done");
    connect(&agent, "10.9.9.8");
    let families = agent.families(|_| true);
    assert_eq!(families["families"][0]["counters"]["ringFull"], 0, "{families}");
}

#[test]
fn dns_questions_and_answers_are_seen_with_their_asker() {
    let room = Room::new();
    // example.org, type A.
    let question = r"b'\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01'";
    let serve = format!(
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('127.0.0.1', 53))\n\
         t = socket.create_server(('127.0.0.1', 53))\nopen({:?}, 'w').write('x')\n\
         m, a = s.recvfrom(512)\ns.sendto(m[:2] + b'\\x81\\x80' + m[4:], a)\nc = t.accept()[0]\nc.recv(600)",
        room.path("serves")
    );
    let ask = format!(
        "q = {question}\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.sendto(q, ('127.0.0.1', 53))\ns.recv(512)\n\
         t = socket.create_connection(('127.0.0.1', 53))\nt.sendall(struct.pack('!H', len(q)) + q)"
    );
    let (mut server, _) = python(&room, "server", &serve);
    let (mut client, client_pid) = python(&room, "client", &ask);
    let mut agent = room.agent("network", &[]);
    server.go();
    until("the server", || std::fs::read(room.path("serves")).ok());
    client.go();
    let is = |line: &Value, answer: bool| line["kind"] == "dns" && line["answer"] == answer;
    let questions = agent.wait_for_count("questions", 2, |line| is(line, false));
    let answer = agent.wait_for("the answer", |line| is(line, true));
    for line in questions.iter().chain([&answer]) {
        assert_eq!((&line["server"], &line["client"]), (&"127.0.0.1:53".into(), &"127.0.0.1".into()));
        assert_eq!(line["pid"], client_pid, "{line}");
        assert!(line["payload"].as_str().unwrap().contains("example"));
    }
    let families = agent.families(|_| true);
    let dns = &families["families"][1]["counters"];
    assert_eq!((dns["submitted"].as_u64(), dns["ringFull"].as_u64()), (Some(3), Some(0)));
}

#[test]
fn where_packets_are_too_many_to_look_at_dns_and_connections_are_seen() {
    let room = Room::new();
    let question = r"b'\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01'";
    let serve = format!(
        "def dns(family, address):\n  s = socket.socket(family, socket.SOCK_DGRAM)\n  s.bind((address, 53))\n  return s\n\
         all = [dns(socket.AF_INET, '127.0.0.1'), dns(socket.AF_INET6, '::1')]\n\
         t = socket.create_server(('127.0.0.1', 8080))\nopen({:?}, 'w').write('x')\n\
         for s in all:\n  m, a = s.recvfrom(512)\n  s.sendto(m[:2] + b'\\x81\\x80' + m[4:], a)\n\
         keep = [t.accept(), t.accept()]",
        room.path("serves")
    );
    let ask = format!(
        "keep = []\nfor family, address in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')):\n  \
         s = socket.socket(family, socket.SOCK_DGRAM)\n  s.sendto({question}, (address, 53))\n  s.recv(512)\n  keep += [s]\n\
         keep += [socket.create_connection(('127.0.0.1', 8080))]\n\
         sys.stdin.readline()\nkeep += [socket.create_connection(('127.0.0.1', 8080))]"
    );
    let (mut server, server_pid) = python(&room, "server", &serve);
    let (mut client, client_pid) = python(&room, "client", &ask);
    server.go();
    until("the server", || std::fs::read(room.path("serves")).ok());
    let mut agent = room.agent("network", &[]);
    let way = |name: &str| {
        let name = name.to_owned();
        move |line: &Value| line["families"][1]["hook"] == name.as_str()
    };
    agent.families(way("packet/53"));
    let mut flood = room.command(std::env::current_exe().unwrap());
    let flood = flood.args(["role", "--exact", "--nocapture"]).env("TASUKI_ROLE", "flood");
    let flood = App(flood.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap());
    agent.families(way("packet/53 (outgoing), raw/udp"));

    client.go();
    let is = |line: &Value, answer: bool| line["kind"] == "dns" && line["answer"] == answer;
    for answer in [false, true] {
        let mut lines = agent.wait_for_count("messages", 2, |line| is(line, answer));
        lines.sort_by_key(|line| line["server"].to_string());
        assert_eq!(lines.iter().map(|line| line["server"].clone()).collect::<Vec<_>>(), ["127.0.0.1:53", "[::1]:53"]);
        for line in lines {
            assert_eq!(line["pid"], client_pid, "{line}");
            assert!(line["payload"].as_str().unwrap().contains("example"));
        }
    }
    let connects = |line: &Value| text(line).starts_with("Connect") && text(line).contains("remote: 127.0.0.1:8080");
    let accepts = |line: &Value| text(line).starts_with("Accept") && text(line).contains("local: Some(127.0.0.1:8080)");
    assert_eq!(agent.wait_for("the connect", connects)["pid"], client_pid);
    assert_eq!(agent.wait_for("the accept", accepts)["pid"], server_pid);

    drop(flood);
    agent.families(way("packet/53"));
    client.go();
    assert_eq!(agent.wait_for_count("connects", 2, connects)[1]["pid"], client_pid);
    assert_eq!(agent.wait_for_count("accepts", 2, accepts)[1]["pid"], server_pid);
    let families = agent.families(|_| true);
    for family in families["families"].as_array().unwrap() {
        assert_eq!(family["counters"]["ringFull"], 0, "{families}");
    }
    assert_eq!(agent.seen(connects).len(), 2, "told once");
    assert_eq!(agent.seen(|line| line["kind"] == "dns").len(), 4, "told once");
}
