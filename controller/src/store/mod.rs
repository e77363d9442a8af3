//! What must outlive the process: findings, the action log, the journal of intents, decide's
//! memory, and a few named settings. SQLite by default; the same SQL text runs on PostgreSQL.
//!
//! Nothing here decides anything, and no secret of a customer is ever stored.

mod counts;
mod deliveries;
mod findings;
mod journal;
mod pins;
mod schema;

pub use findings::{FindingFilter, Pruned, StoredFinding};
pub use journal::{ActionRecord, Intent};
pub use pins::{Pin, Pinned};

use jiff::Timestamp;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{AnyPool, Row};
use std::str::FromStr;
use tasuki_core::memory::Memory;

/// A failure of the store; names what was being done.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database answered with an error.
    #[error("the store could not {doing}; check the disk and the --store URL")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// The database's answer.
        #[source]
        source: sqlx::Error,
    },
    /// What was read is not what was written.
    #[error("the store holds a {what} that this version cannot read")]
    Corrupt {
        /// What it should have been.
        what: &'static str,
        /// Why it is not.
        #[source]
        source: serde_json::Error,
    },
}

type Result<T> = std::result::Result<T, StoreError>;

/// Adds what was being done to a database error.
fn doing(what: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Database { doing: what, source }
}

fn corrupt(what: &'static str) -> impl FnOnce(serde_json::Error) -> StoreError {
    move |source| StoreError::Corrupt { what, source }
}

/// The store. Cheap to clone; all clones share one pool.
#[derive(Clone, Debug)]
pub struct Store {
    pool: AnyPool,
}

/// Setting: base64 of the gateway's id.
pub const GATEWAY_ID: &str = "gateway.id";
/// Setting: PEM of the gateway's certificate authority and its key (generated on first start).
pub const GATEWAY_CA: &str = "gateway.ca";
/// Setting: PKCS#8 of the Ed25519 key that signs policy bundles, base64.
pub const POLICY_KEY: &str = "policy.key";
/// Setting: `true` while everything is frozen.
pub const FROZEN: &str = "frozen";

impl Store {
    /// Opens the store and brings its tables up to date.
    ///
    /// `url` is `sqlite:///path/file.db` (made where absent), `sqlite::memory:`, or `postgres://…`.
    pub async fn open(url: &str) -> Result<Self> {
        sqlx::any::install_default_drivers();
        let sqlite = url.starts_with("sqlite:");
        if let Some(path) = url.strip_prefix("sqlite://").and_then(|rest| rest.split('?').next()) {
            private(std::path::Path::new(path)).map_err(|error| doing("keep its file to itself")(error.into()))?;
        }
        let url = match sqlite && !url.contains(":memory:") && !url.contains('?') {
            true => format!("{url}?mode=rwc"),
            false => url.to_owned(),
        };
        let options = AnyConnectOptions::from_str(&url).map_err(doing("understand its URL"))?;
        // SQLite has one writer, and an in-memory database lives in one connection.
        let pool = AnyPoolOptions::new()
            .max_connections(if sqlite { 1 } else { 8 })
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await
            .map_err(doing("open the database"))?;
        if sqlite {
            for pragma in ["PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL", "PRAGMA busy_timeout = 5000"] {
                sqlx::query(pragma).execute(&pool).await.map_err(doing("set up SQLite"))?;
            }
        }
        schema::migrate(&pool).await?;
        Ok(Self { pool })
    }

    /// A named setting.
    pub async fn setting(&self, name: &str) -> Result<Option<String>> {
        let row = sqlx::query("SELECT value FROM settings WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.pool)
            .await
            .map_err(doing("read a setting"))?;
        row.map(|row| row.try_get(0)).transpose().map_err(doing("read a setting"))
    }

    /// Sets a named setting.
    pub async fn set_setting(&self, name: &str, value: &str) -> Result<()> {
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(name)
        .bind(value)
        .execute(&self.pool)
        .await
        .map_err(doing("write a setting"))?;
        Ok(())
    }

    /// Sets a named setting unless it is set, and returns what is set: two processes that start
    /// at once agree.
    pub async fn setting_or_insert(&self, name: &str, value: &str) -> Result<String> {
        sqlx::query("INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
            .bind(name)
            .bind(value)
            .execute(&self.pool)
            .await
            .map_err(doing("write a setting"))?;
        Ok(self.setting(name).await?.unwrap_or_else(|| value.to_owned()))
    }

    /// What decide remembers.
    pub async fn memory(&self) -> Result<Memory> {
        match self.setting("decide.memory").await? {
            Some(text) => serde_json::from_str(&text).map_err(corrupt("memory of past decisions")),
            None => Ok(Memory::default()),
        }
    }

    /// Keeps what decide remembers.
    pub async fn set_memory(&self, memory: &Memory) -> Result<()> {
        let text = serde_json::to_string(memory).map_err(corrupt("memory of past decisions"))?;
        self.set_setting("decide.memory", &text).await
    }
}

/// The file belongs to its owner alone: it holds the gateway's keys. SQLite gives its side files the same mode.
fn private(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    if path.as_os_str().is_empty() || path.starts_with(":memory:") {
        return Ok(());
    }
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// Times are stored as microseconds since the epoch: both databases compare and index them alike.
fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn settings_and_memory_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/t.db", dir.path().display());
        let store = Store::open(&url).await.unwrap();
        assert_eq!(store.setting("x").await.unwrap(), None);
        store.set_setting("x", "1").await.unwrap();
        assert_eq!(store.setting_or_insert("x", "2").await.unwrap(), "1");
        let mut memory = Memory::default();
        memory.services.insert("arn".into(), Default::default());
        store.set_memory(&memory).await.unwrap();
        drop(store);
        let store = Store::open(&url).await.unwrap();
        assert_eq!(store.setting("x").await.unwrap().as_deref(), Some("1"));
        assert_eq!(store.memory().await.unwrap(), memory);
    }

    #[tokio::test]
    async fn the_file_and_those_beside_it_are_the_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.db");
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let store = Store::open(&format!("sqlite://{}", file.display())).await.unwrap();
        store.set_setting("x", "1").await.unwrap();
        let entries: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap()).collect();
        assert!(entries.len() >= 2, "the write-ahead log lies beside it");
        for entry in entries {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
    }

    #[tokio::test]
    async fn a_database_that_cannot_be_opened_says_what_to_check() {
        let error = Store::open("sqlite:///nonexistent/dir/t.db").await.unwrap_err();
        assert!(error.to_string().contains("--store"), "{error}");
    }
}
