//! Entry point.

fn main() -> std::process::ExitCode {
    tasuki_agent::memory::frugal();
    // Two TLS providers in one process would be a panic later: choose before anything else runs.
    // It fails only if one was chosen already, which is then the one that is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tasuki_agent::cli::main()
}
