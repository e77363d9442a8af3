//! Which key speaks for which agent: the first one, until it has fallen silent.

use super::{Result, Store, doing, micros};
use jiff::Timestamp;
use sqlx::Row;

/// A claim of a key on an agent, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// ARN of the agent's task.
    pub task: String,
    /// Runtime id of the agent's container.
    pub runtime_id: String,
    /// Ed25519 public key, base64.
    pub public_key: String,
    /// The claim carried a checked signature of the task's role.
    pub signed: bool,
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinned {
    /// No key was pinned before.
    First,
    /// The pinned key itself; another key had claimed to be it at this time.
    Same(Option<Timestamp>),
    /// The pinned key had been silent, and this one replaces it.
    TookOver,
    /// Another key is pinned and not silent: the claim is noted and refused.
    Held,
}

impl Store {
    /// Pins a key, unless another one that was heard at or after `silent_before` holds the pin.
    /// A signed pin is never taken over by an unsigned claim.
    pub async fn pin_agent(&self, pin: &Pin, silent_before: Timestamp, now: Timestamp) -> Result<Pinned> {
        let wrong = "pin an agent's key";
        let inserted = sqlx::query(
            "INSERT INTO agent_pins (task, runtime_id, public_key, signed, heard_at, contender_at)
             VALUES ($1, $2, $3, $4, $5, 0) ON CONFLICT (task, runtime_id) DO NOTHING",
        )
        .bind(&pin.task)
        .bind(&pin.runtime_id)
        .bind(&pin.public_key)
        .bind(i64::from(pin.signed))
        .bind(micros(now))
        .execute(&self.pool)
        .await
        .map_err(doing(wrong))?;
        if inserted.rows_affected() == 1 {
            return Ok(Pinned::First);
        }
        // Each step is one statement with its condition inside, so two gateways cannot both win.
        let same = sqlx::query(
            "UPDATE agent_pins SET heard_at = $1, signed = $2 WHERE task = $3 AND runtime_id = $4 AND public_key = $5",
        )
        .bind(micros(now))
        .bind(i64::from(pin.signed))
        .bind(&pin.task)
        .bind(&pin.runtime_id)
        .bind(&pin.public_key)
        .execute(&self.pool)
        .await
        .map_err(doing(wrong))?;
        if same.rows_affected() == 1 {
            let row = sqlx::query("SELECT contender_at FROM agent_pins WHERE task = $1 AND runtime_id = $2")
                .bind(&pin.task)
                .bind(&pin.runtime_id)
                .fetch_optional(&self.pool)
                .await
                .map_err(doing(wrong))?;
            let at: i64 = row.map(|row| row.try_get(0)).transpose().map_err(doing(wrong))?.unwrap_or(0);
            return Ok(Pinned::Same((at > 0).then(|| Timestamp::from_microsecond(at).unwrap_or(now))));
        }
        let over = sqlx::query(
            "UPDATE agent_pins SET public_key = $1, signed = $2, heard_at = $3, contender_at = 0
             WHERE task = $4 AND runtime_id = $5 AND heard_at < $6 AND signed <= $2",
        )
        .bind(&pin.public_key)
        .bind(i64::from(pin.signed))
        .bind(micros(now))
        .bind(&pin.task)
        .bind(&pin.runtime_id)
        .bind(micros(silent_before))
        .execute(&self.pool)
        .await
        .map_err(doing(wrong))?;
        if over.rows_affected() == 1 {
            return Ok(Pinned::TookOver);
        }
        sqlx::query("UPDATE agent_pins SET contender_at = $1 WHERE task = $2 AND runtime_id = $3")
            .bind(micros(now))
            .bind(&pin.task)
            .bind(&pin.runtime_id)
            .execute(&self.pool)
            .await
            .map_err(doing(wrong))?;
        Ok(Pinned::Held)
    }

    /// Notes when agents (task, runtime id) were last heard, all in one transaction.
    pub async fn agents_heard(&self, heard: &[(String, String, Timestamp)]) -> Result<()> {
        let wrong = "note when agents were heard";
        let mut transaction = self.pool.begin().await.map_err(doing(wrong))?;
        for (task, runtime_id, at) in heard {
            sqlx::query("UPDATE agent_pins SET heard_at = $1 WHERE task = $2 AND runtime_id = $3 AND heard_at < $1")
                .bind(micros(*at))
                .bind(task)
                .bind(runtime_id)
                .execute(&mut *transaction)
                .await
                .map_err(doing(wrong))?;
        }
        transaction.commit().await.map_err(doing(wrong))
    }

    /// Forgets pins last heard before `before`. Returns how many went.
    pub async fn prune_pins(&self, before: Timestamp) -> Result<u64> {
        let gone = sqlx::query("DELETE FROM agent_pins WHERE heard_at < $1")
            .bind(micros(before))
            .execute(&self.pool)
            .await
            .map_err(doing("prune agents' keys"))?;
        Ok(gone.rows_affected())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }
    fn pin(key: &str, signed: bool) -> Pin {
        Pin { task: "t".to_owned(), runtime_id: "r".to_owned(), public_key: key.to_owned(), signed }
    }

    #[tokio::test]
    async fn the_first_key_holds_until_it_is_silent_and_a_weaker_one_never_replaces_it() {
        let store = Store::open("sqlite::memory:").await.unwrap();
        assert_eq!(store.pin_agent(&pin("a", true), at(0), at(100)).await.unwrap(), Pinned::First);
        assert_eq!(store.pin_agent(&pin("a", true), at(0), at(101)).await.unwrap(), Pinned::Same(None));
        assert_eq!(store.pin_agent(&pin("b", true), at(50), at(110)).await.unwrap(), Pinned::Held);
        assert_eq!(store.pin_agent(&pin("a", true), at(0), at(120)).await.unwrap(), Pinned::Same(Some(at(110))));
        store.agents_heard(&[("t".to_owned(), "r".to_owned(), at(200))]).await.unwrap();
        assert_eq!(store.pin_agent(&pin("b", true), at(190), at(245)).await.unwrap(), Pinned::Held);
        assert_eq!(store.pin_agent(&pin("c", false), at(201), at(246)).await.unwrap(), Pinned::Held);
        assert_eq!(store.pin_agent(&pin("b", true), at(201), at(247)).await.unwrap(), Pinned::TookOver);
        assert_eq!(store.pin_agent(&pin("b", true), at(0), at(248)).await.unwrap(), Pinned::Same(None));
        assert_eq!(store.prune_pins(at(249)).await.unwrap(), 1);
        assert_eq!(store.pin_agent(&pin("z", false), at(0), at(250)).await.unwrap(), Pinned::First);
    }
}
