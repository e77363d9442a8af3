//! The token that orders must carry.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Name of the token's file in the state directory.
pub const TOKEN_FILE: &str = "admin.token";

/// A secret of this run; only its bytes are compared, never shown.
pub struct AdminToken(String);

impl AdminToken {
    /// Makes a new token and writes it to `<state_dir>/admin.token`, readable by the owner alone.
    /// The file is replaced whole: whoever reads it sees the old token or the new one.
    pub fn make(state_dir: &Path) -> io::Result<Self> {
        let mut bytes = [0u8; 32];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("the system gives no random bytes"))?;
        let token = hex::encode(bytes);
        DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
        let (file, new) = (state_dir.join(TOKEN_FILE), state_dir.join(format!(".{TOKEN_FILE}.new")));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // `create_new` follows no link that someone put there.
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        writeln!(out, "{token}")?;
        out.sync_all()?;
        fs::rename(&new, &file)?;
        Ok(Self(token))
    }

    /// Whether a request's `Authorization` header carries it. Takes the same time wherever they differ.
    pub fn is_in(&self, header: Option<&http::HeaderValue>) -> bool {
        let given = header.and_then(|value| value.as_bytes().strip_prefix(b"Bearer ")).unwrap_or_default();
        aws_lc_rs::constant_time::verify_slices_are_equal(given, self.0.as_bytes()).is_ok()
    }
}

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminToken")
    }
}
