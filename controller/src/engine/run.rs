//! Starts everything and waits until it is told to stop.

use super::{Engine, View};
use crate::cli::RunArgs;
use crate::web::{AdminToken, Metrics, Web};
use anyhow::Context;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Runs the controller.
///
/// # Errors
/// Where it cannot start: the state directory, the store or the address cannot be used.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let dir = args.config_dir.clone().context("no desired state: name a directory with --config-dir")?;
    let state = args.state_dir.display().to_string();
    let token =
        AdminToken::make(&args.state_dir).with_context(|| format!("cannot write to the state directory {state}"))?;
    let store = crate::store::Store::open(&args.store_url()).await.context("cannot open the store")?;
    let (desired, _following) = crate::desired::follow(dir, args.config_poll).await;
    for problem in &desired.borrow().problems {
        tracing::warn!(
            file = problem.file,
            line = problem.line,
            subject = problem.subject,
            message = problem.message,
            "problem in the desired state"
        );
    }
    let (_view, view) = watch::channel(Arc::new(View { desired: desired.borrow().hash.clone(), ..View::default() }));
    let (requests, asked) = mpsc::channel(64);
    // Nobody answers yet: questions are refused at once.
    drop(asked);

    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}; name another address with --listen", args.listen))?;
    let listen = listener.local_addr().context("the address is gone again")?;
    let stop = CancellationToken::new();
    let web = Web {
        engine: Engine { view, requests },
        store,
        desired,
        metrics: Arc::new(Metrics::default()),
        token,
        gateway: Default::default(),
        hosts: args.web_hosts.clone(),
        listen,
    };
    tracing::info!(address = %listen, "the page and the API are served");
    let serving = tokio::spawn(crate::web::serve(listener, Arc::new(web), stop.clone().cancelled_owned()));
    stopped().await?;
    tracing::info!("stopping");
    stop.cancel();
    serving.await.context("the web server broke")?.context("the web server failed")?;
    Ok(ExitCode::SUCCESS)
}

/// Waits for SIGTERM or Ctrl-C.
async fn stopped() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}
