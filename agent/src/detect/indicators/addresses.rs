//! Sets of addresses and CIDR blocks, by longest prefix.

use prefix_trie::{Prefix, PrefixMap};
use std::net::IpAddr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct V4(u32, u8);
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct V6(u128, u8);

impl Prefix for V4 {
    type R = u32;
    fn repr(&self) -> u32 {
        self.0
    }
    fn prefix_len(&self) -> u8 {
        self.1
    }
    fn from_repr_len(repr: u32, len: u8) -> Self {
        Self(repr, len)
    }
}

impl Prefix for V6 {
    type R = u128;
    fn repr(&self) -> u128 {
        self.0
    }
    fn prefix_len(&self) -> u8 {
        self.1
    }
    fn from_repr_len(repr: u128, len: u8) -> Self {
        Self(repr, len)
    }
}

/// Addresses and blocks of both families.
#[derive(Debug, Default)]
pub(super) struct AddressSet {
    v4: PrefixMap<V4, ()>,
    v6: PrefixMap<V6, ()>,
}

impl AddressSet {
    /// A set of `entries`, and those that are neither an address nor a block.
    pub(super) fn build<'a>(entries: &[&'a str]) -> (Self, Vec<&'a str>) {
        let (mut set, mut bad) = (Self::default(), Vec::new());
        for entry in entries {
            match parse(entry.trim()) {
                Some((IpAddr::V4(address), length)) => drop(set.v4.insert(V4(address.to_bits(), length), ())),
                Some((IpAddr::V6(address), length)) => drop(set.v6.insert(V6(address.to_bits(), length), ())),
                None => bad.push(*entry),
            }
        }
        (set, bad)
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&V4(address.to_bits(), 32)).is_some(),
            IpAddr::V6(address) => self.v6.get_lpm(&V6(address.to_bits(), 128)).is_some(),
        }
    }
}

/// `0.0.0.0/0` would list the whole internet by a slip, so the shortest prefixes are refused.
const SHORTEST_V4: u8 = 8;
const SHORTEST_V6: u8 = 16;

fn parse(entry: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = match entry.split_once('/') {
        Some((address, length)) => (address.parse::<IpAddr>().ok()?, Some(length.parse::<u8>().ok()?)),
        None => (entry.parse::<IpAddr>().ok()?, None),
    };
    let (shortest, longest) = if address.is_ipv4() { (SHORTEST_V4, 32) } else { (SHORTEST_V6, 128) };
    let length = length.unwrap_or(longest);
    (shortest..=longest).contains(&length).then_some((address, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_their_addresses_and_the_whole_internet_is_refused() {
        let (set, bad) = AddressSet::build(&["10.1.2.3/8", "192.0.2.7", "2001:db8::/32", "0.0.0.0/0", "::/0", "1.2.3"]);
        assert_eq!(bad, ["0.0.0.0/0", "::/0", "1.2.3"]);
        let has = |text: &str| set.contains(text.parse().unwrap());
        assert!(has("10.255.0.1") && has("192.0.2.7") && has("2001:db8:ffff::1"));
        assert!(!has("11.0.0.1") && !has("192.0.2.8") && !has("2001:db9::1"));
    }
}
