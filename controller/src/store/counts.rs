//! Findings by type and severity, for the metrics.

use super::{Result, Store, doing};
use sqlx::Row;

/// Types of findings that are told apart; agents name them, so their number must have an end.
const MAX_TYPES: i64 = 500;

impl Store {
    /// How many findings are kept: type, severity, number; the most frequent first.
    pub async fn count_findings(&self) -> Result<Vec<(String, String, u64)>> {
        let sql = "SELECT type, severity, COUNT(*) FROM findings GROUP BY type, severity ORDER BY COUNT(*) DESC, type, severity LIMIT $1";
        let rows = sqlx::query(sql).bind(MAX_TYPES).fetch_all(&self.pool).await.map_err(doing("count findings"))?;
        let read = |row: &sqlx::any::AnyRow| -> std::result::Result<_, sqlx::Error> {
            let (kind, severity, n): (String, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let severity = ["Low", "Medium", "High", "Critical"].get(usize::try_from(severity).unwrap_or(0));
            Ok((kind, severity.copied().unwrap_or("Low").to_owned(), u64::try_from(n).unwrap_or(0)))
        };
        rows.iter().map(read).collect::<std::result::Result<_, _>>().map_err(doing("count findings"))
    }
}
