//! What programs are, by their names and arguments: shells, package managers, miners.

use crate::process::Program;
use crate::process::table::base_name;

const SHELLS: &[&str] =
    &["sh", "bash", "dash", "ash", "zsh", "ksh", "ksh93", "mksh", "rbash", "csh", "tcsh", "fish", "pdksh", "yash"];

/// Whether a program is a command shell: by its file, or as an applet of busybox.
pub fn is_shell(path: &str, arguments: &[String]) -> bool {
    let name = base_name(path);
    if name == "busybox" || name == "busybox-static" {
        let called = arguments.first().map_or("", |first| base_name(first).trim_start_matches('-'));
        return SHELLS.contains(&called)
            || (called.starts_with("busybox")
                && arguments.get(1).is_some_and(|applet| SHELLS.contains(&applet.as_str())));
    }
    SHELLS.contains(&name)
}

/// Whether a shell was started to be talked to: with -i, or with neither a command nor a script.
pub fn is_talked_to(arguments: &[String]) -> bool {
    let mut plain = true;
    for argument in arguments.iter().skip(1) {
        match argument.strip_prefix('-') {
            Some(long) if long.starts_with('-') => {}
            Some(short) if short.contains('i') => return true,
            Some(short) if short.contains('c') => plain = false,
            Some(_) => {}
            None if SHELLS.contains(&argument.as_str()) => {}
            None => plain = false,
        }
    }
    plain
}

/// Package managers whose every use changes the system.
const SYSTEM_MANAGERS: &[&str] = &[
    "dpkg",
    "dpkg-deb",
    "apt",
    "apt-get",
    "aptitude",
    "rpm",
    "yum",
    "dnf",
    "dnf5",
    "microdnf",
    "tdnf",
    "zypper",
    "apk",
    "pacman",
    "unattended-upgrade",
    "pip",
    "pip3",
    "gem",
    "conda",
    "mamba",
    "easy_install",
    "rpmdb",
    "update-alternatives",
];
/// Those that also start applications, with the arguments by which they install.
const LANGUAGE_MANAGERS: &[(&str, &[&str])] = &[
    ("npm", &["install", "i", "ci", "add", "rebuild", "update", "install-ci-test", "clean-install"]),
    ("npm-cli.js", &["install", "i", "ci", "add", "rebuild", "update", "clean-install"]),
    ("yarn", &["install", "add", "upgrade"]),
    ("yarn.js", &["install", "add", "upgrade"]),
    ("pnpm", &["install", "i", "add", "update", "rebuild"]),
    ("pnpm.cjs", &["install", "i", "add", "update", "rebuild"]),
    ("bundle", &["install", "update"]),
    ("bundler", &["install", "update"]),
    ("composer", &["install", "update", "require"]),
    ("poetry", &["install", "add", "update"]),
    ("uv", &["sync", "add", "pip", "install"]),
    ("cargo", &["install", "build", "run", "test"]),
    ("go", &["install", "build", "get", "run", "test", "mod"]),
];
const INTERPRETERS: &[&str] = &["node", "ruby", "perl", "php", "env"];

/// Whether a program installs software: a system package manager, or a language's one that was
/// told to install. `npm start` is an application, not an installation.
pub fn is_package_manager(program: &Program) -> bool {
    let mut name = base_name(&program.path);
    let mut rest = program.arguments.get(1..).unwrap_or_default();
    let interpreted = INTERPRETERS.contains(&name) || name.starts_with("python") || is_shell(name, &program.arguments);
    if interpreted {
        if rest.first().is_some_and(|flag| flag == "-m") {
            rest = rest.get(1..).unwrap_or_default();
        }
        let Some(first) = rest.first().filter(|first| !first.starts_with('-')) else { return false };
        name = base_name(first);
        rest = rest.get(1..).unwrap_or_default();
    }
    SYSTEM_MANAGERS.contains(&name)
        || LANGUAGE_MANAGERS
            .iter()
            .any(|(manager, verbs)| *manager == name && rest.iter().any(|argument| verbs.contains(&argument.as_str())))
}

/// Programs that may carry a miner's arguments without being one.
const READERS: &[&str] = &[
    "grep",
    "egrep",
    "rg",
    "echo",
    "printf",
    "sed",
    "awk",
    "gawk",
    "mawk",
    "cat",
    "vi",
    "vim",
    "nano",
    "tee",
    "less",
    "pgrep",
    "pkill",
    "tasuki",
    "tasuki-agent",
];

/// Schemes by which pools are addressed (xmrig documentation, "pools").
const POOL_SCHEMES: &[&str] = &[
    "stratum+tcp://",
    "stratum+ssl://",
    "stratum+tls://",
    "stratum2+tcp://",
    "stratum1+tcp://",
    "stratum://",
    "stratums://",
    "daemon+http://",
    "nicehash+tcp://",
];
/// Options that only miners have (command lines of xmrig, cpuminer, ethminer, t-rex, lolMiner).
const MINER_OPTIONS: &[&str] = &[
    "--donate-level",
    "--donate-over-proxy",
    "--randomx-init",
    "--randomx-1gb-pages",
    "--randomx-mode",
    "--randomx-wrmsr",
    "--cpu-max-threads-hint",
    "--rig-id",
    "--nicehash",
    "--no-huge-pages",
    "--coin",
    "--huge-pages-jit",
    "--argon2-impl",
    "--cuda-devices",
    "--opencl-devices",
    "--algo",
    "--cpu-affinity",
    "--asm",
    "--coinbase-addr",
    "--farm-recheck",
    "--worker",
    "--wallet",
    "--pool",
    "--mining-threads",
];

/// Whether arguments are a miner's: a stratum address, or two options that only miners have, or
/// one of them with a Monero address.
pub fn is_miner(path: &str, arguments: &[String]) -> bool {
    if READERS.contains(&base_name(path)) {
        return false;
    }
    let rest = arguments.get(1..).unwrap_or_default();
    if rest.iter().any(|argument| POOL_SCHEMES.iter().any(|scheme| contains_ignore_case(argument, scheme))) {
        return true;
    }
    let options = rest
        .iter()
        .filter(|argument| {
            let name = argument.split('=').next().unwrap_or(argument);
            MINER_OPTIONS.contains(&name)
        })
        .count();
    let wallet = rest.iter().any(|argument| argument.split(['=', '.', '+']).any(is_monero_address));
    options >= 2 || (options == 1 && wallet)
}

fn contains_ignore_case(text: &str, needle: &str) -> bool {
    text.len() >= needle.len()
        && text.as_bytes().windows(needle.len()).any(|window| window.eq_ignore_ascii_case(needle.as_bytes()))
}

/// 95 (or, integrated, 106) base-58 characters that begin with 4 or 8 (Monero address format).
fn is_monero_address(text: &str) -> bool {
    let base58 = |byte: u8| byte.is_ascii_alphanumeric() && !matches!(byte, b'0' | b'O' | b'I' | b'l');
    matches!(text.len(), 95 | 106) && text.starts_with(['4', '8']) && text.bytes().all(base58)
}

/// Ports that pools publish and that little else uses.
pub const MINER_PORTS: &[u16] = &[3333, 4444, 5555, 7777, 14433, 14444, 45560, 45700];

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }
    fn installs(path: &str, line: &str) -> bool {
        is_package_manager(&Program { path: path.into(), arguments: words(line), ..Program::default() })
    }

    #[test]
    fn shells_are_told_from_what_looks_like_one() {
        assert!(is_shell("/bin/bash", &words("bash")) && is_shell("/usr/bin/busybox", &words("sh -c id")));
        assert!(is_shell("/bin/busybox", &words("busybox sh")) && is_shell("/bin/sh (deleted)", &words("sh")));
        assert!(!is_shell("/bin/busybox", &words("ls sh")) && !is_shell("/usr/bin/ssh", &words("ssh")));
        assert!(is_talked_to(&words("bash -i")) && is_talked_to(&words("sh")) && is_talked_to(&words("-bash")));
        assert!(!is_talked_to(&words("sh -c id")) && !is_talked_to(&words("bash /entrypoint.sh")));
        assert!(!is_talked_to(&words("sh -ec id")));
    }

    #[test]
    fn an_installation_is_told_from_an_application() {
        assert!(installs("/usr/bin/dpkg", "dpkg -i x") && installs("/usr/bin/node", "node /usr/local/bin/npm ci"));
        assert!(
            installs("/usr/bin/python3.12", "python -m pip install x") && installs("/bin/sh", "sh /usr/bin/apk add x")
        );
        assert!(
            !installs("/usr/bin/node", "node /usr/local/bin/npm start") && !installs("/usr/bin/node", "node server.js")
        );
        assert!(!installs("/bin/sh", "sh -c apt-get"));
    }

    #[test]
    fn miners_are_known_by_their_arguments() {
        let wallet = format!("4{}", "A".repeat(94));
        assert!(is_miner("/tmp/x", &words("x -o stratum+tcp://pool.example.test:3333 -u w")));
        assert!(is_miner("/tmp/x", &words("x --donate-level=1 --cpu-max-threads-hint 75")));
        assert!(is_miner("/tmp/x", &words(&format!("x --algo rx/0 -u {wallet}.rig"))));
        assert!(!is_miner("/bin/grep", &words("grep stratum+tcp:// /etc/x")));
        assert!(!is_miner("/app", &words("app --worker 4 --port 3333")) && !is_miner("/app", &[]));
    }
}
