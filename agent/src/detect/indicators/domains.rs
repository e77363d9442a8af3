//! A set of domains in which a name is found by any of its suffixes.
//!
//! Entries are kept as keyed 64-bit hashes, sorted, behind a binary fuse filter: 2.2 MiB + 7.6 MiB
//! for a million, and almost every lookup ends in the filter. Two names share a hash with a
//! probability of one in 2^44 at a million entries; the key makes such pairs impossible to plan.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use xorf::{BinaryFuse16, Filter};

static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Labels of a name that are looked at, from the right; DNS allows 127.
const MAX_LABELS: usize = 16;

/// Hashes of a name and its parent domains, the shortest with two labels.
#[derive(Debug, Default)]
pub struct Suffixes {
    hashes: [u64; MAX_LABELS],
    count: usize,
}

impl Suffixes {
    /// Of a lower-case name without its final dot.
    pub fn of(name: &str) -> Self {
        let mut suffixes = Self::default();
        let (mut end, mut labels) = (name.len(), 0_usize);
        while let Some(slot) = suffixes.hashes.get_mut(suffixes.count) {
            let dot = name.get(..end).and_then(|head| head.rfind('.'));
            labels += 1;
            let suffix = dot.map_or(name, |dot| name.get(dot + 1..).unwrap_or(name));
            if labels >= 2 {
                *slot = KEY.hash_one(suffix);
                suffixes.count += 1;
            }
            match dot {
                Some(dot) => end = dot,
                None => break,
            }
        }
        suffixes
    }
}

/// Domains.
#[derive(Debug, Default)]
pub(super) struct DomainSet {
    filter: Option<BinaryFuse16>,
    hashes: Vec<u64>,
}

impl DomainSet {
    /// A set of `entries`, and those that are no domain of two labels or more.
    pub(super) fn build<'a>(entries: &[&'a str]) -> (Self, Vec<&'a str>) {
        let (mut hashes, mut bad) = (Vec::with_capacity(entries.len()), Vec::new());
        for entry in entries {
            match normal(entry) {
                Some(name) => hashes.push(KEY.hash_one(name.as_str())),
                None => bad.push(*entry),
            }
        }
        hashes.sort_unstable();
        hashes.dedup();
        hashes.shrink_to_fit();
        // Without a filter a lookup is a binary search: slower, not wrong.
        let filter = if hashes.is_empty() { None } else { BinaryFuse16::try_from(&hashes).ok() };
        (Self { filter, hashes }, bad)
    }

    pub(super) fn contains(&self, suffixes: &Suffixes) -> bool {
        suffixes.hashes.iter().take(suffixes.count).any(|hash| {
            self.filter.as_ref().is_none_or(|filter| filter.contains(hash)) && self.hashes.binary_search(hash).is_ok()
        })
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.hashes.capacity() * 8 + self.filter.as_ref().map_or(0, |filter| filter.fingerprints.len() * 2)
    }
}

/// `*.Example.COM.` → `example.com`.
fn normal(entry: &str) -> Option<String> {
    let name = entry.trim().trim_start_matches("*.").trim_start_matches('.').trim_end_matches('.').to_ascii_lowercase();
    let labels = name.split('.').count();
    let fits = (2..=MAX_LABELS).contains(&labels) && name.len() <= 253;
    (fits && name.split('.').all(|label| !label.is_empty() && !label.contains(char::is_whitespace))).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_by_its_suffixes_and_by_nothing_else() {
        let (set, bad) = DomainSet::build(&["*.Pool.example.", "evil.test", "test", "a..b"]);
        assert_eq!(bad, ["test", "a..b"]);
        let has = |name| set.contains(&Suffixes::of(name));
        assert!(has("pool.example") && has("eu.xmr.pool.example") && has("evil.test"));
        assert!(!has("example") && !has("mypool.example") && !has("test") && !has(""));
        assert!(has(&format!("{}evil.test", "x.".repeat(100))), "only the last labels count");
    }

    #[test]
    fn a_million_domains_fit_in_forty_mebibytes() {
        let names: Vec<String> = (0..1_000_000).map(|n| format!("d{n}.example")).collect();
        let entries: Vec<&str> = names.iter().map(String::as_str).collect();
        let (set, bad) = DomainSet::build(&entries);
        assert!(bad.is_empty());
        assert!(set.bytes() < 40 << 20, "{} bytes", set.bytes());
        assert!(set.contains(&Suffixes::of("www.d999999.example")));
        assert!(!set.contains(&Suffixes::of("www.d1000000.example")));
    }
}
