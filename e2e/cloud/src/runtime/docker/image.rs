//! Images: those that the engine holds. Nothing is pulled; the digest of an image is its id.

use super::{DockerError, Engine};
use bollard::query_parameters::BuildImageOptionsBuilder;
use futures_util::TryStreamExt;

/// The pause container's image.
pub(super) const PAUSE: &str = "tasuki-local/pause:1";

/// PID 1 of a shared PID namespace: reaps what others leave behind, ends at once on SIGTERM.
pub(super) const PAUSE_COMMAND: [&str; 4] =
    ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; while :; do /bin/busybox sleep 3600 & wait; done"];

/// An image that can be started.
pub(super) struct Image {
    /// `sha256:…`; names the image for the engine too.
    pub id: String,
}

/// Finds the image that a reference means: `repository:tag`, or `repository@sha256:…` where the
/// digest is an image id. The error is in the engine's words, as ECS shows them.
pub(super) async fn resolve(engine: &Engine, reference: &str) -> Result<Image, String> {
    let wanted = reference.split_once('@').map_or(reference, |(_, digest)| digest);
    match engine.client.inspect_image(wanted).await {
        Ok(found) => Ok(Image { id: found.id.unwrap_or_default() }),
        Err(error) => Err(format!(
            "pull image manifest has been retried 1 time(s): failed to resolve ref {reference}: {reference}: not found ({error})"
        )),
    }
}

/// Builds the pause image from this machine's static busybox, unless it is there.
pub(super) async fn ensure_pause(engine: &Engine) -> Result<(), DockerError> {
    if engine.client.inspect_image(PAUSE).await.is_ok() {
        return Ok(());
    }
    let path = "/bin/busybox";
    let busybox = std::fs::read(path).map_err(|source| DockerError::Host {
        doing: format!("read {path} (install it: apt-get install busybox-static)"),
        source,
    })?;
    let mut context = tar::Builder::new(Vec::new());
    let mut add = |name: &str, mode: u32, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        context.append_data(&mut header, name, bytes)
    };
    let packed = add("busybox", 0o755, &busybox)
        .and_then(|()| add("Dockerfile", 0o644, b"FROM scratch\nCOPY busybox /bin/busybox\n"))
        .and_then(|()| context.into_inner());
    let packed = packed.map_err(|source| DockerError::Host { doing: "pack the pause image".to_owned(), source })?;
    let options = BuildImageOptionsBuilder::new().dockerfile("Dockerfile").t(PAUSE).rm(true).build();
    let body = bollard::body_full(packed.into());
    engine
        .client
        .build_image(options, None, Some(body))
        .try_collect::<Vec<_>>()
        .await
        .map_err(engine.error("build the pause image"))?;
    Ok(())
}
