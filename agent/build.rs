//! Builds the eBPF programs and leaves the object in `OUT_DIR/tasuki-probes`.
//!
//! They need `core` for `bpfel-unknown-none`, which no stable toolchain ships. Two ways, the first
//! that is there: Debian's rustc-web packages (a prebuilt `core`), or nightly with rust-src. Both
//! need bpf-linker. `TASUKI_PROBES_TARGET` names a target directory that outlives `OUT_DIR`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "tasuki-probes";

const INSTALL: &str = "\
the eBPF programs need a Rust toolchain with `core` for bpfel-unknown-none, and bpf-linker. Either:
  Debian:    apt-get install -y rustc-web cargo-web libstd-rust-web-dev-bpf llvm-22-dev libpolly-22-dev libzstd-dev
             PATH=/usr/lib/llvm-22/bin:$PATH LLVM_PREFIX=/usr/lib/llvm-22 \\
               cargo install bpf-linker --version 0.13.0 --no-default-features --features llvm-22
  elsewhere: rustup toolchain install nightly --component rust-src
             cargo install bpf-linker
bpf-linker is looked for on PATH, in ~/.cargo/bin and in ~/.cache/tasuki/tools/bin.";

fn main() {
    if let Err(problem) = build() {
        eprintln!("error: {problem}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let probes = manifest.parent().ok_or("the agent's folder has no parent")?.join("probes");
    for part in ["src", "abi/src", "Cargo.toml", "Cargo.lock", "abi/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", probes.join(part).display());
    }
    println!("cargo::rerun-if-env-changed=TASUKI_PROBES_TARGET");

    let linker = find_linker().ok_or_else(|| format!("bpf-linker was not found.\n{INSTALL}"))?;
    let toolchain = Toolchain::find().ok_or_else(|| format!("no toolchain was found.\n{INSTALL}"))?;
    // An empty name would be the working directory, which is the source tree.
    let named = env::var_os("TASUKI_PROBES_TARGET").filter(|name| !name.is_empty());
    let target = named.map_or_else(|| out.join("probes-target"), PathBuf::from);

    let mut flags = OsString::from("-Clinker=");
    flags.push(&linker);
    // BTF for the maps; it needs debug information.
    flags.push("\u{1f}-Clink-arg=--btf\u{1f}-Cdebuginfo=2");
    let mut command = Command::new(&toolchain.cargo);
    clear_environment(&mut command);
    command
        .current_dir(&probes)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(&target)
        .args(&toolchain.arguments);
    let status = command.status().map_err(|error| format!("could not run {}: {error}", toolchain.cargo.display()))?;
    if !status.success() {
        return Err(format!("building {} failed ({status}): see above", probes.display()));
    }
    let object = target.join(TARGET).join("release").join(OBJECT);
    std::fs::copy(&object, out.join(OBJECT))
        .map_err(|error| format!("could not copy {} to {}: {error}", object.display(), out.display()))?;
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("{name} is not set: run this by cargo"))
}

/// The outer build's wrappers, flags and toolchain are not for the other target.
fn clear_environment(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let keep = matches!(text, "CARGO_HOME" | "CARGO_NET_OFFLINE") || text.starts_with("CARGO_HTTP_");
        let foreign = text.starts_with("CARGO") || text.starts_with("RUST") || text.starts_with("DEP_");
        if foreign && text != "RUSTUP_HOME" && !keep {
            command.env_remove(&name);
        }
    }
}

struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    arguments: Vec<&'static str>,
}

impl Toolchain {
    fn find() -> Option<Self> {
        Self::prebuilt().or_else(Self::nightly)
    }

    /// A system toolchain whose library folder has `core` for the target.
    fn prebuilt() -> Option<Self> {
        let (cargo, rustc) = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"));
        let libraries = answer(Command::new(&rustc).args(["--print", "target-libdir", "--target", TARGET]))?;
        let has_core = std::fs::read_dir(libraries).ok()?.flatten().any(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with("libcore-")
        });
        (has_core && cargo.exists()).then(|| Self { cargo, rustc, arguments: Vec::new() })
    }

    /// rustup's nightly with the library's source.
    fn nightly() -> Option<Self> {
        let which =
            |tool| answer(Command::new("rustup").args(["which", "--toolchain", "nightly", tool])).map(PathBuf::from);
        let (cargo, rustc) = (which("cargo")?, which("rustc")?);
        let sysroot = answer(Command::new(&rustc).args(["--print", "sysroot"]))?;
        let source = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core");
        source.exists().then(|| Self { cargo, rustc, arguments: vec!["-Zbuild-std=core"] })
    }
}

fn answer(command: &mut Command) -> Option<String> {
    clear_environment(command);
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn find_linker() -> Option<PathBuf> {
    let home = env::var_os("HOME").map(PathBuf::from);
    let own = home.iter().flat_map(|home| [home.join(".cargo/bin"), home.join(".cache/tasuki/tools/bin")]);
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(own).map(|folder| folder.join("bpf-linker")).find(|file| file.is_file())
}
