//! Indicators: addresses, domains and hashes that lists name, with the category of each list.
//!
//! Lookups cost the same however many entries there are; memory for a million domains stays below
//! 40 MiB. A trusted entry takes a hit away.

mod addresses;
mod domains;

use addresses::AddressSet;
use domains::DomainSet;
pub use domains::Suffixes;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use tasuki_api::desired::{ThreatEntity, ThreatListSpec, ThreatVerdict};

/// Categories that are told apart, at most; each costs one probe a lookup.
pub const MAX_CATEGORIES: usize = 64;
/// Entries over all lists, at most.
pub const MAX_ENTRIES: usize = 4_000_000;

/// Category of domain lists that name none.
pub const DEFAULT_DOMAIN_CATEGORY: &str = "MaliciousDomainRequest";
/// Category of address lists that name none.
pub const DEFAULT_ADDRESS_CATEGORY: &str = "C&CActivity";
/// Category of hash lists that name none.
pub const DEFAULT_HASH_CATEGORY: &str = "Malware";

/// Lists that come with the agent: category, entity, text with one entry a line and `#` comments
/// that name the source.
const BUILT_IN: &[(&str, ThreatEntity, &str)] = &[
    ("CryptoCurrency", ThreatEntity::Domain, include_str!("../../../rules/lists/mining-pools.txt")),
    ("C&CActivity", ThreatEntity::Domain, include_str!("../../../rules/lists/command-and-control.txt")),
];

/// Every list, compiled.
#[derive(Debug, Default)]
pub struct Indicators {
    domains: Vec<(String, DomainSet)>,
    trusted_domains: DomainSet,
    addresses: Vec<(String, AddressSet)>,
    trusted_addresses: AddressSet,
    hashes: Vec<(String, HashSet<[u8; 32]>)>,
    trusted_hashes: HashSet<[u8; 32]>,
}

#[derive(Default)]
struct Raw<'a> {
    threat: BTreeMap<String, Vec<&'a str>>,
    trusted: Vec<&'a str>,
}

impl Indicators {
    /// Compiles the built-in lists and `lists`. Entries that cannot be read are left out, and one
    /// line about each list with such entries comes back.
    pub fn compile(lists: &[ThreatListSpec]) -> (Self, Vec<String>) {
        let mut problems = Vec::new();
        let (mut domains, mut addresses, mut hashes) = (Raw::default(), Raw::default(), Raw::default());
        for (category, entity, text) in BUILT_IN {
            let raw = match entity {
                ThreatEntity::Domain => &mut domains,
                ThreatEntity::Ip => &mut addresses,
                ThreatEntity::Sha256 => &mut hashes,
            };
            let entries = text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
            raw.threat.entry((*category).to_owned()).or_default().extend(entries.filter(|entry| !entry.is_empty()));
        }
        let mut total = 0_usize;
        for list in lists {
            let (raw, default) = match list.entity {
                ThreatEntity::Domain => (&mut domains, DEFAULT_DOMAIN_CATEGORY),
                ThreatEntity::Ip => (&mut addresses, DEFAULT_ADDRESS_CATEGORY),
                ThreatEntity::Sha256 => (&mut hashes, DEFAULT_HASH_CATEGORY),
            };
            let room = MAX_ENTRIES.saturating_sub(total);
            if list.inline.len() > room {
                problems.push(format!("threat lists hold more than {MAX_ENTRIES} entries; the rest is not used"));
            }
            let entries = list.inline.iter().take(room).map(String::as_str);
            total += list.inline.len().min(room);
            match list.verdict {
                ThreatVerdict::Trusted => raw.trusted.extend(entries),
                ThreatVerdict::Threat => {
                    let category = list.category.as_deref().unwrap_or(default);
                    if !raw.threat.contains_key(category) && raw.threat.len() >= MAX_CATEGORIES {
                        problems.push(format!("more than {MAX_CATEGORIES} categories; list of {category} is not used"));
                        continue;
                    }
                    raw.threat.entry(category.to_owned()).or_default().extend(entries);
                }
            }
        }
        let mut indicators = Self::default();
        let mut note = |what: &str, bad: Vec<&str>| {
            if let Some(first) = bad.first() {
                let first: String = first.chars().take(80).collect();
                problems.push(format!("{} {what} not understood, the first is {first:?}", bad.len()));
            }
        };
        for (category, entries) in domains.threat {
            let (set, bad) = DomainSet::build(&entries);
            note("domain entries", bad);
            indicators.domains.push((category, set));
        }
        let (set, bad) = DomainSet::build(&domains.trusted);
        note("trusted domain entries", bad);
        indicators.trusted_domains = set;
        for (category, entries) in addresses.threat {
            let (set, bad) = AddressSet::build(&entries);
            note("address entries", bad);
            indicators.addresses.push((category, set));
        }
        let (set, bad) = AddressSet::build(&addresses.trusted);
        note("trusted address entries", bad);
        indicators.trusted_addresses = set;
        for (category, entries) in hashes.threat {
            let (set, bad) = hash_set(&entries);
            note("SHA-256 entries", bad);
            indicators.hashes.push((category, set));
        }
        let (set, bad) = hash_set(&hashes.trusted);
        note("trusted SHA-256 entries", bad);
        indicators.trusted_hashes = set;
        (indicators, problems)
    }

    /// Categories of the lists that name `name` or a parent domain of it.
    pub fn domain(&self, name: &str) -> Vec<&str> {
        let suffixes = Suffixes::of(name);
        let hits =
            self.domains.iter().filter(|(_, set)| set.contains(&suffixes)).map(|(category, _)| category.as_str());
        let hits: Vec<&str> = hits.collect();
        if hits.is_empty() || self.trusted_domains.contains(&suffixes) { Vec::new() } else { hits }
    }

    /// Categories of the lists that name `address` or a block around it.
    pub fn address(&self, address: IpAddr) -> Vec<&str> {
        let address = address.to_canonical();
        let hits =
            self.addresses.iter().filter(|(_, set)| set.contains(address)).map(|(category, _)| category.as_str());
        let hits: Vec<&str> = hits.collect();
        if hits.is_empty() || self.trusted_addresses.contains(address) { Vec::new() } else { hits }
    }

    /// Categories of the lists that name the hash.
    pub fn hash(&self, sha256: &[u8; 32]) -> Vec<&str> {
        if self.trusted_hashes.contains(sha256) {
            return Vec::new();
        }
        self.hashes.iter().filter(|(_, set)| set.contains(sha256)).map(|(category, _)| category.as_str()).collect()
    }

    /// Whether any list holds hashes, so that executables must be hashed.
    pub fn has_hashes(&self) -> bool {
        self.hashes.iter().any(|(_, set)| !set.is_empty())
    }
}

fn hash_set<'a>(entries: &[&'a str]) -> (HashSet<[u8; 32]>, Vec<&'a str>) {
    let (mut set, mut bad) = (HashSet::with_capacity(entries.len()), Vec::new());
    for entry in entries {
        let mut hash = [0; 32];
        match hex::decode_to_slice(entry.trim().as_bytes(), &mut hash) {
            Ok(()) => drop(set.insert(hash)),
            Err(_) => bad.push(*entry),
        }
    }
    (set, bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(verdict: ThreatVerdict, entity: ThreatEntity, category: Option<&str>, entries: &[&str]) -> ThreatListSpec {
        let inline = entries.iter().map(|entry| (*entry).to_owned()).collect();
        ThreatListSpec { verdict, entity, category: category.map(str::to_owned), inline }
    }

    #[test]
    fn trusted_wins_over_threat() {
        let (indicators, problems) = Indicators::compile(&[
            list(ThreatVerdict::Threat, ThreatEntity::Domain, Some("CryptoCurrency"), &["example.test"]),
            list(ThreatVerdict::Trusted, ThreatEntity::Domain, None, &["good.example.test"]),
            list(ThreatVerdict::Threat, ThreatEntity::Ip, None, &["203.0.113.0/24", "2001:db8::/32"]),
            list(ThreatVerdict::Trusted, ThreatEntity::Ip, None, &["203.0.113.9"]),
        ]);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(indicators.domain("pool.example.test"), ["CryptoCurrency"]);
        assert_eq!(indicators.domain("a.good.example.test"), Vec::<&str>::new());
        assert_eq!(indicators.domain("notexample.test"), Vec::<&str>::new());
        assert_eq!(indicators.address("203.0.113.8".parse().unwrap()), ["C&CActivity"]);
        assert_eq!(indicators.address("::ffff:203.0.113.8".parse().unwrap()), ["C&CActivity"]);
        assert_eq!(indicators.address("2001:db8::1".parse().unwrap()), ["C&CActivity"]);
        assert!(indicators.address("203.0.113.9".parse().unwrap()).is_empty());
        assert!(indicators.address("198.51.100.1".parse().unwrap()).is_empty());
    }

    #[test]
    fn entries_that_cannot_be_read_are_named_and_the_rest_is_used() {
        let (indicators, problems) = Indicators::compile(&[
            list(ThreatVerdict::Threat, ThreatEntity::Ip, None, &["nonsense", "10.0.0.0/40", "192.0.2.1"]),
            list(ThreatVerdict::Threat, ThreatEntity::Domain, None, &["com", "", "ok.example"]),
            list(ThreatVerdict::Threat, ThreatEntity::Sha256, None, &["xyz", &"ab".repeat(32)]),
        ]);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(!indicators.address("192.0.2.1".parse().unwrap()).is_empty());
        assert!(!indicators.domain("ok.example").is_empty());
        assert_eq!(indicators.hash(&[0xab; 32]), [DEFAULT_HASH_CATEGORY]);
        assert!(indicators.has_hashes());
    }

    #[test]
    fn the_built_in_lists_are_whole() {
        let (indicators, problems) = Indicators::compile(&[]);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(indicators.domain("pool.supportxmr.com"), ["CryptoCurrency"]);
        assert_eq!(indicators.domain("guarddutyc2activityb.com"), ["C&CActivity"]);
    }
}
