//! Images from files of this machine, `FROM scratch`: nothing is pulled.

use crate::archive::Archive;
use anyhow::{Context, Result, bail};
use bollard::query_parameters::BuildImageOptionsBuilder;
use futures_util::TryStreamExt;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An image to build.
#[derive(Default)]
pub struct Image {
    files: Vec<(String, u32, Vec<u8>)>,
    /// Path and what it leads to.
    links: Vec<(String, String)>,
    libraries: BTreeSet<PathBuf>,
    lines: String,
}

impl Image {
    /// Adds a file with these permissions.
    pub fn file(mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.trim_start_matches('/').to_owned(), mode, content.into()));
        self
    }

    /// Adds an executable of this machine, with the shared libraries that it loads.
    pub fn program(mut self, path: &str, from: &Path) -> Result<Self> {
        let bytes = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let output = Command::new("ldd").arg(from).output().context("cannot run ldd")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let libraries = text.lines().flat_map(str::split_whitespace).filter(|word| word.starts_with('/'));
        self.libraries.extend(libraries.map(PathBuf::from));
        Ok(self.file(path, 0o755, bytes))
    }

    /// Adds busybox under all of its names in /bin: a shell and the usual programs.
    pub fn userland(self) -> Result<Self> {
        let busybox = Path::new("/bin/busybox");
        if !busybox.exists() {
            bail!("{} is missing (apt-get install busybox-static)", busybox.display());
        }
        let names = Command::new(busybox).arg("--list").output().context("cannot run busybox")?.stdout;
        let names = String::from_utf8_lossy(&names).lines().map(str::to_owned).collect::<Vec<_>>();
        let mut image = self.program("/bin/busybox", busybox)?;
        let others = names.into_iter().filter(|name| name != "busybox");
        image.links.extend(others.map(|name| (format!("bin/{name}"), "/bin/busybox".to_owned())));
        Ok(image)
    }

    /// Adds a line to the Dockerfile, such as `ENV A=B`.
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push_str(line);
        self.lines.push('\n');
        self
    }

    /// Builds it under `tag`; returns its id, `sha256:…`.
    pub async fn build(self, client: &bollard::Docker, tag: &str) -> Result<String> {
        let (root, lines) = self.root("root/")?;
        let dockerfile = format!("FROM scratch\nCOPY root/ /\n{lines}");
        let mut context = root;
        add(&mut context, "Dockerfile", 0o644, dockerfile.as_bytes())?;
        let body = bollard::body_full(context.into_inner()?.into());
        let options = BuildImageOptionsBuilder::new().dockerfile("Dockerfile").t(tag).rm(true).build();
        let steps: Vec<_> = client.build_image(options, None, Some(body)).try_collect().await?;
        if let Some(error) = steps.into_iter().find_map(|step| step.error_detail) {
            bail!("image {tag}: {}", error.message.unwrap_or_default());
        }
        Ok(client.inspect_image(tag).await?.id.unwrap_or_default())
    }

    /// Packs it as an OCI archive under `reference`, without any engine.
    pub fn pack(self, reference: &str) -> Result<Archive> {
        let (root, lines) = self.root("")?;
        Archive::new(reference, root.into_inner()?, &lines)
    }

    /// Its files below `prefix` of an open archive, and its Dockerfile's lines.
    fn root(mut self, prefix: &str) -> Result<(tar::Builder<Vec<u8>>, String)> {
        for library in std::mem::take(&mut self.libraries) {
            let bytes = std::fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
            self = self.file(&library.display().to_string(), 0o755, bytes);
        }
        let mut root = tar::Builder::new(Vec::new());
        for (path, mode, content) in &self.files {
            add(&mut root, &format!("{prefix}{path}"), *mode, content)?;
        }
        for (path, target) in &self.links {
            let mut header = header(0, 0o777);
            header.set_entry_type(tar::EntryType::Symlink);
            root.append_link(&mut header, format!("{prefix}{path}"), target)?;
        }
        Ok((root, self.lines))
    }
}

/// Adds a file to an archive; the same bytes always give the same archive.
pub(crate) fn add(archive: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    archive.append_data(&mut header(content.len() as u64, mode), path, content)?;
    Ok(())
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    // The same bytes give the same image, so that the engine's cache serves the second run.
    header.set_mtime(0);
    header
}

/// A small userland with a web server whose CGI script runs what it is sent: the customer's
/// vulnerable application, with the lab's stand-ins at /opt/lab.
pub fn shop(lab: &Path) -> Result<Image> {
    let script = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\nread -r line\neval \"$line\" 2>&1\n";
    let start = "#!/bin/sh\nmkdir -p /tmp\ntrap 'exit 0' TERM\nhttpd -f -p 8080 -h /www &\nwait\n";
    Ok(Image::default()
        .userland()?
        .program("/opt/lab/tasuki-lab", lab)?
        .file("/www/index.html", 0o644, "open\n")
        .file("/www/cgi-bin/run", 0o755, script)
        .file("/bin/start", 0o755, start)
        .file("/etc/passwd", 0o644, "root:x:0:0::/:/bin/sh\nwww:x:33:33::/:/bin/sh\n")
        .file("/tmp/.keep", 0o644, "")
        .line("CMD [\"/bin/start\"]"))
}
