//! Images as OCI archives (image-layout 1.0.0), made without an engine: one layer, no history.
//!
//! What they are called by digest is known as soon as they are made, and every runtime imports them.

use crate::image::add;
use anyhow::{Context, Result, bail};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Map, Value, json};

/// Media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A packed image.
#[derive(Clone, Debug)]
pub struct Archive {
    /// `repository:tag`.
    pub reference: String,
    /// Of its manifest: `sha256:…`.
    pub digest: String,
    /// Its manifest.
    pub manifest: Vec<u8>,
    /// Layer and configuration, each with its digest.
    pub blobs: Vec<(String, Vec<u8>)>,
}

impl Archive {
    /// Packs `layer`, a tar file, with what `lines` of a Dockerfile say of ENV, USER, WORKDIR, ENTRYPOINT and CMD.
    pub(crate) fn new(reference: &str, layer: Vec<u8>, lines: &str) -> Result<Self> {
        if reference.rsplit('/').next().is_none_or(|last| !last.contains(':')) {
            bail!("image {reference} has no tag; name it repository:tag");
        }
        let layer_digest = sha256(&layer);
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = serde_json::to_vec(&json!({
            "architecture": architecture,
            "os": "linux",
            "config": settings(lines)?,
            "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
        }))?;
        let config_digest = sha256(&config);
        let blob = |kind: &str, digest: &str, content: &[u8]| {
            let kind = format!("application/vnd.oci.image.{kind}");
            json!({ "mediaType": kind, "digest": digest, "size": content.len() })
        };
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blob("config.v1+json", &config_digest, &config),
            "layers": [blob("layer.v1.tar", &layer_digest, &layer)],
        }))?;
        let blobs = vec![(layer_digest, layer), (config_digest, config)];
        Ok(Self { reference: reference.to_owned(), digest: sha256(&manifest), manifest, blobs })
    }

    /// `repository@sha256:…`.
    pub fn by_digest(&self) -> String {
        let repository = self.reference.rsplit_once(':').map_or(self.reference.as_str(), |(repository, _)| repository);
        format!("{repository}@{}", self.digest)
    }

    /// The archive as a file's content.
    pub fn tar(&self) -> Result<Vec<u8>> {
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": MANIFEST,
                "digest": self.digest,
                "size": self.manifest.len(),
                "annotations": { "io.containerd.image.name": self.reference },
            }],
        });
        let mut archive = tar::Builder::new(Vec::new());
        add(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add(&mut archive, "index.json", 0o644, &serde_json::to_vec(&index)?)?;
        let manifest = (&self.digest, &self.manifest);
        for (digest, content) in self.blobs.iter().map(|(digest, content)| (digest, content)).chain([manifest]) {
            add(&mut archive, &format!("blobs/{}", digest.replace(':', "/")), 0o644, content)?;
        }
        Ok(archive.into_inner()?)
    }
}

/// The configuration that a Dockerfile's lines ask for.
fn settings(lines: &str) -> Result<Map<String, Value>> {
    let mut settings = Map::new();
    let mut environment = vec!["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".to_owned()];
    for line in lines.lines() {
        let (word, rest) = line.split_once(' ').with_context(|| format!("{line:?} is no line of a Dockerfile"))?;
        let list = || serde_json::from_str::<Vec<String>>(rest).with_context(|| format!("{line:?} needs a JSON list"));
        let (name, value) = match word {
            "ENV" => {
                environment.push(rest.to_owned());
                continue;
            }
            "USER" => ("User", json!(rest)),
            "WORKDIR" => ("WorkingDir", json!(rest)),
            "ENTRYPOINT" => ("Entrypoint", json!(list()?)),
            "CMD" => ("Cmd", json!(list()?)),
            _ => bail!("{line:?}: only ENV, USER, WORKDIR, ENTRYPOINT and CMD can be packed without an engine"),
        };
        settings.insert(name.to_owned(), value);
    }
    settings.insert("Env".to_owned(), json!(environment));
    Ok(settings)
}

fn sha256(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(digest(&SHA256, content)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use crate::image::Image;
    use serde_json::Value;

    #[test]
    fn settings_and_names_are_in_the_archive() {
        let image = || {
            Image::default()
                .file("/a", 0o644, "content")
                .line("ENV A=B")
                .line("USER 7")
                .line("ENTRYPOINT [\"/a\", \"b\"]")
        };
        let packed = image().pack("registry.test:5000/some/thing:1").unwrap();
        assert_eq!(packed.digest, image().pack("other:2").unwrap().digest, "the same content has the same digest");
        assert_eq!(packed.by_digest(), format!("registry.test:5000/some/thing@{}", packed.digest));
        let config: Value = serde_json::from_slice(&packed.blobs[1].1).unwrap();
        assert_eq!(config["config"]["User"], "7");
        assert_eq!(config["config"]["Entrypoint"][1], "b");
        assert_eq!(config["config"]["Env"][1], "A=B");
        let tar = packed.tar().unwrap();
        let names = tar::Archive::new(&tar[..])
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect::<Vec<_>>();
        assert_eq!(names.len(), 5);
        assert!(names.contains(&format!("blobs/{}", packed.digest.replace(':', "/"))));
    }

    #[test]
    fn what_needs_an_engine_is_refused() {
        let error = Image::default().line("RUN [\"/a\"]").pack("a:1").unwrap_err().to_string();
        assert!(error.contains("RUN") && error.contains("without an engine"), "{error}");
        assert!(Image::default().pack("localhost:5000/a").is_err());
    }
}
