//! The ptrace sensor.

use crate::room::{App, Room, is_traced, kill, state, until};
use serde_json::Value;

/// An application that forks, execs and writes on and on.
const BUSY: &str = "while :; do echo x >> $FILE; /bin/true; done";

fn busy(room: &Room) -> App {
    let child = room.sh(&BUSY.replace("$FILE", &room.path("progress")));
    room.goes_on("progress");
    child
}

fn is_exec(line: &Value, arguments: &[&str]) -> bool {
    line["kind"] == "exec" && line["arguments"] == serde_json::json!(arguments)
}

#[test]
fn every_exec_of_a_shell_loop_is_seen_with_arguments_and_lineage() {
    let room = Room::new();
    let mut shell = room.sh("read go; for i in $(seq 200); do /bin/echo number $i >/dev/null; done");
    let agent = room.agent("ptrace", &[]);
    shell.0.stdin = None;
    let is_echo = |line: &Value| line["kind"] == "exec" && line["arguments"][0] == "/bin/echo";
    let execs = agent.wait_for_count("execs", 200, is_echo);
    let exits = agent.wait_for_count("exits", 200, |line| line["kind"] == "exit");
    assert!(exits.len() >= 200);
    let numbers: std::collections::BTreeSet<_> = execs.iter().map(|line| line["arguments"][2].to_string()).collect();
    assert_eq!(numbers.len(), 200);
    let parents: std::collections::BTreeSet<_> = execs.iter().map(|line| line["parent"].as_u64().unwrap()).collect();
    assert_eq!(parents.len(), 1, "all have the same shell as parent");
    let parent = parents.first().unwrap();
    for exec in &execs {
        assert_eq!(exec["filename"], "/bin/echo");
        let forks = agent.seen(|line| line["kind"] == "fork" && line["child"] == exec["pid"]);
        assert_eq!(forks.len(), 1, "{exec}");
        assert_eq!(forks[0]["pid"].as_u64().unwrap(), *parent);
    }
    assert!(shell.0.wait().unwrap().success());
}

#[test]
fn namespaces_are_those_that_the_program_runs_in_whether_they_are_read_or_known() {
    let room = Room::new();
    let file = room.path("namespaces");
    // Reads its own: as it was started, with others of mounts, with others of process ids.
    let look = format!("readlink /proc/self/ns/mnt /proc/self/ns/pid >> {file}");
    let confined = format!("{look}; {look}; unshare -rm sh -c '{look}'; {look}");
    let may = format!("{look}; unshare -m sh -c '{look}'; unshare -pf sh -c '{look}'; {look}");
    let all = format!(
        "{may}; setpriv --bounding-set -sys_admin --inh-caps -sys_admin sh -c {}; echo end >> {file}",
        quoted(&confined)
    );
    let mut app = room.sh(&format!("read go; {all}"));
    let agent = room.agent("ptrace", &[]);
    app.go();
    let text = until("the end", || std::fs::read_to_string(&file).ok().filter(|text| text.ends_with("end\n")));
    let expected: Vec<&str> = text.lines().take_while(|line| *line != "end").collect();
    assert_eq!(expected.len(), 16, "{text}");
    let is_look = |line: &Value| line["kind"] == "exec" && line["arguments"][0] == "readlink";
    let execs = agent.wait_for_count("execs", 8, is_look);
    let told: Vec<&str> =
        execs.iter().flat_map(|line| [line["mounts"].as_str(), line["pids"].as_str()]).flatten().collect();
    assert_eq!(told, expected);
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[test]
fn the_application_survives_kill_9_of_the_tracer() {
    let room = Room::new();
    let mut app = busy(&room);
    let mut agent = room.agent("ptrace", &[]);
    agent.wait_for("an exec", |line| is_exec(line, &["/bin/true"]));
    kill(agent.pid, "KILL");
    agent.wait();
    room.goes_on("progress");
    assert!(app.is_running());
}

#[test]
fn the_watchdog_frees_the_application_from_a_stopped_tracer() {
    let room = Room::new();
    let mut app = busy(&room);
    let agent = room.agent("ptrace", &[]);
    agent.wait_for("an exec", |line| is_exec(line, &["/bin/true"]));
    kill(agent.pid, "STOP");
    // Without the watchdog neither would ever come. (nsenter stops with its child and does not reap it.)
    until("the end of the agent", || matches!(state(agent.pid), None | Some('Z')).then_some(()));
    room.goes_on("progress");
    assert!(app.is_running());
}

#[test]
fn stop_lets_go_of_everything_and_the_application_goes_on() {
    let room = Room::new();
    let _app = busy(&room);
    let mut sleeper = room.sh("echo $$ > $FILE.pid; exec sleep 1000".replace("$FILE", &room.path("sleeper")).as_str());
    let inner = until("the sleeper", || std::fs::read_to_string(room.path("sleeper.pid")).ok()?.trim().parse().ok());
    let sleeper_pid = room.outer(inner);
    let mut agent = room.agent("ptrace", &[]);
    until("the sleeper to be traced", || is_traced(sleeper_pid).then_some(()));
    agent.tell("stop");
    let stopped = agent.wait_for("stopped", |line| line["kind"] == "stopped");
    assert_eq!(stopped["state"]["whole"], false);
    assert!(!is_traced(sleeper_pid));
    until("the sleeper to sleep on", || (state(sleeper_pid) == Some('S')).then_some(()));
    room.goes_on("progress");
    kill(sleeper_pid, "TERM");
    assert!(!sleeper.0.wait().unwrap().success());
}

#[test]
fn a_newcomer_that_no_tracee_forked_is_seen() {
    let room = Room::new();
    let agent = room.agent("ptrace", &[]);
    let status = room.command("setsid").args(["sh", "-c", "sleep 0.3; /bin/echo from outside"]).status().unwrap();
    assert!(status.success());
    let exec = agent.wait_for("the exec", |line| is_exec(line, &["/bin/echo", "from", "outside"]));
    assert!(exec["parent"].as_u64().unwrap() > 0);
    agent.wait_for("the shell", |line| line["kind"] == "exec" && line["arguments"][0] == "sh");
}

#[test]
fn job_control_works_under_tracing() {
    let room = Room::new();
    let file = room.path("progress");
    let _app = room.sh(&format!("echo $$ > {file}.pid; while :; do echo x >> {file}; done"));
    let inner = until("the loop", || std::fs::read_to_string(format!("{file}.pid")).ok()?.trim().parse().ok());
    let pid = room.outer(inner);
    let agent = room.agent("ptrace", &[]);
    until("tracing", || is_traced(pid).then_some(()));
    for signal in ["STOP", "TSTP"] {
        room.goes_on("progress");
        kill(pid, signal);
        // Stopped, and not only for the moment in which the tracer passes the signal on.
        until("the stop", || {
            let before = room.progress("progress");
            for _ in 0..5 {
                if !matches!(state(pid), Some('t' | 'T')) {
                    return None;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            (room.progress("progress") == before).then_some(())
        });
        kill(pid, "CONT");
        room.goes_on("progress");
    }
    kill(pid, "STOP");
    kill(pid, "KILL");
    agent.wait_for("the exit", |line| line["kind"] == "exit" && line["pid"] == inner && line["code"] == 9);
}

#[test]
fn set_user_id_is_honoured_and_told() {
    let room = Room::new();
    let copy = room.path("id");
    std::fs::copy("/usr/bin/id", &copy).unwrap();
    let chmod = |mode: &str, path: &str| {
        assert!(std::process::Command::new("chmod").args([mode, path]).status().unwrap().success());
    };
    chmod("4755", &copy);
    chmod("755", &room.directory.path().display().to_string());
    let agent = room.agent("ptrace", &[]);
    let out = room
        .command("setpriv")
        .args(["--reuid=65534", "--clear-groups", "sh", "-c", &format!("sleep 0.3; {copy} -u")])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "0\n");
    let exec = agent.wait_for("the exec", |line| is_exec(line, &[&copy, "-u"]));
    assert_eq!((exec["previous"].as_u64(), exec["euid"].as_u64()), (Some(65534), Some(0)));
}

#[test]
fn a_shell_on_a_socket_and_a_program_in_memory_are_told_as_such() {
    let room = Room::new();
    let agent = room.agent("ptrace", &[]);
    let script = r#"
import os, socket, time
time.sleep(0.3)
listener = socket.create_server(("127.0.0.1", 4444))
client = socket.create_connection(("127.0.0.1", 4444))
if os.fork() == 0:
    for fd in range(3): os.dup2(client.fileno(), fd)
    os.execv("/bin/sh", ["sh", "-c", "exit 7"])
os.wait()
memory = os.memfd_create("payload")
os.write(memory, open("/bin/true", "rb").read())
if os.fork() == 0:
    os.execve(memory, ["innocent"], {"LD_PRELOAD": "/nowhere.so"})
os.wait()
"#;
    let status = room.command("python3").args(["-c", script]).status().unwrap();
    assert!(status.success());
    let shell = agent.wait_for("the shell", |line| is_exec(line, &["sh", "-c", "exit 7"]));
    let socket = "Socket(Some(127.0.0.1:4444))";
    assert_eq!(shell["stdio"], format!("[{socket}, {socket}, {socket}]"));
    assert_eq!(shell["memfd"], false);
    agent.wait_for("its exit", |line| line["kind"] == "exit" && line["pid"] == shell["pid"] && line["code"] == 7 << 8);
    let memory = agent.wait_for("the program in memory", |line| is_exec(line, &["innocent"]));
    assert_eq!(memory["memfd"], true);
    assert!(memory["executable"].as_str().unwrap().starts_with("/memfd:payload"));
    assert_eq!(memory["environment"], serde_json::json!([["LD_PRELOAD", "/nowhere.so"]]));
}

#[test]
fn an_exec_and_a_fork_by_another_thread_are_seen() {
    let room = Room::new();
    let agent = room.agent("ptrace", &[]);
    let script = r#"
import os, threading, time
time.sleep(0.3)
def fork():
    if os.fork() == 0: os.execv("/bin/true", ["forked-by-thread"])
    os.wait()
    os.execv("/bin/true", ["by-thread"])
threading.Thread(target=fork).start()
time.sleep(1000)
"#;
    let status = room.command("python3").args(["-c", script]).status().unwrap();
    assert!(status.success());
    let forked = agent.wait_for("the fork's exec", |line| is_exec(line, &["forked-by-thread"]));
    let own = agent.wait_for("the thread's exec", |line| is_exec(line, &["by-thread"]));
    assert_eq!(forked["parent"], own["pid"]);
    agent.wait_for("the exit", |line| line["kind"] == "exit" && line["pid"] == own["pid"]);
}

#[test]
fn a_script_is_told_with_its_interpreter() {
    let room = Room::new();
    let script = room.path("job.sh");
    std::fs::write(&script, "#!/bin/sh\nexit 0\n").unwrap();
    assert!(std::process::Command::new("chmod").args(["755", &script]).status().unwrap().success());
    let agent = room.agent("ptrace", &[]);
    assert!(room.command("sh").args(["-c", &format!("sleep 0.3; {script} one; true")]).status().unwrap().success());
    let exec = agent.wait_for("the script", |line| line["filename"] == script.as_str());
    assert_eq!(exec["script"], script.as_str());
    assert_eq!(exec["arguments"], serde_json::json!(["/bin/sh", script, "one"]));
}

#[test]
fn a_process_that_another_one_traces_is_refused_and_counted() {
    let room = Room::new();
    let file = room.path("pid");
    let _traced = room.sh(&format!("exec strace -f -o /dev/null sh -c 'echo $$ > {file}; exec sleep 1000'"));
    let inner = until("the traced process", || std::fs::read_to_string(&file).ok()?.trim().parse().ok());
    assert!(is_traced(room.outer(inner)));
    let mut agent = room.agent("ptrace", &[]);
    let answer = agent.families(|answer| answer["families"][0]["problem"].is_string());
    assert_eq!(answer["families"][0]["problem"], "1 processes are traced by another process");
    assert_eq!(answer["state"]["whole"], true);
}

#[test]
fn a_process_that_stops_too_often_is_let_go_and_counted() {
    let room = Room::new();
    let mut agent = room.agent("ptrace", &[("TASUKI_LIMIT", "50")]);
    let script = format!(
        "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *a: None)\nout = open({:?}, 'a')\n\
         while True:\n os.kill(os.getpid(), signal.SIGUSR1)\n out.write('x')\n out.flush()\n",
        room.path("progress")
    );
    let _app = App(room.command("python3").args(["-c", &script]).spawn().unwrap());
    let answer = agent.families(|answer| {
        answer["families"][0]["problem"].as_str().is_some_and(|problem| problem.contains("times a process was let go"))
    });
    let problem = answer["families"][0]["problem"].as_str().unwrap();
    assert!(problem.contains("1 times new threads of a process were let go"), "{problem}");
    room.goes_on("progress");
}

#[test]
fn a_full_table_lets_the_application_go_on_and_is_counted() {
    let room = Room::new();
    let mut app = busy(&room);
    let mut agent = room.agent("ptrace", &[("TASUKI_THREADS", "3")]);
    let answer = agent.families(|answer| answer["families"][0]["problem"].is_string());
    let problem = answer["families"][0]["problem"].as_str().unwrap();
    assert!(problem.contains("did not fit into the table"), "{problem}");
    room.goes_on("progress");
    assert!(app.is_running());
}

#[test]
fn threads_that_come_and_go_on_and_on_do_not_disturb() {
    let room = Room::new();
    let script = format!(
        "import threading, os\nout = open({:?}, 'a')\nwhile True:\n\
         \x20ts = [threading.Thread(target=os.getpid) for _ in range(8)]\n\
         \x20[t.start() for t in ts]; [t.join() for t in ts]\n out.write('x'); out.flush()\n",
        room.path("progress")
    );
    let mut app = App(room.command("python3").args(["-c", &script]).spawn().unwrap());
    let mut agent = room.agent("ptrace", &[("TASUKI_LIMIT", "1000000")]);
    room.goes_on("progress");
    let answer = agent.families(|_| true);
    assert_eq!(answer["families"][0]["problem"], Value::Null);
    assert!(app.is_running());
    let after =
        "import os\nwhile 'TracerPid:\\t0' in open('/proc/self/status').read(): pass\nos.execv('/bin/true', ['after'])";
    let status = room.command("python3").args(["-c", after]).status().unwrap();
    assert!(status.success());
    agent.wait_for("an exec after it", |line| is_exec(line, &["after"]));
}
