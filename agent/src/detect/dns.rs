//! Reading DNS messages that an attacker may have written, and remembering what names meant.
//!
//! A message is read field by field: a bad tail must not hide a good question. Nothing here
//! allocates by a length that the message claims.

use crate::event::CgroupId;
use hickory_proto::op::{Header, Query};
use hickory_proto::rr::{RData, Record};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use lru::LruCache;
use std::net::IpAddr;
use std::num::NonZeroUsize;

/// Answers of one message that are looked at.
const MAX_RECORDS: u16 = 32;
/// Addresses whose names are remembered.
pub const NAME_CACHE: usize = 16_384;
/// Questions that wait for their answers.
pub const QUESTION_CACHE: usize = 4_096;

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Message id.
    pub id: u16,
    /// Name asked for, lower case, without the final dot.
    pub question: String,
    /// `A`, `AAAA`, …
    pub question_type: String,
    /// Addresses among the answers.
    pub addresses: Vec<IpAddr>,
}

/// Reads a message; `None` where it has no readable question.
pub fn parse(payload: &[u8]) -> Option<Message> {
    let mut decoder = BinDecoder::new(payload);
    let header = Header::read(&mut decoder).ok()?;
    if header.counts.queries == 0 {
        return None;
    }
    let query = Query::read(&mut decoder).ok()?;
    let mut question = query.name().to_ascii().to_ascii_lowercase();
    if question.len() > 1 && question.ends_with('.') {
        question.pop();
    }
    let mut message =
        Message { id: header.id, question, question_type: query.query_type().to_string(), addresses: Vec::new() };
    for _ in 1..header.counts.queries.min(MAX_RECORDS) {
        if Query::read(&mut decoder).is_err() {
            return Some(message);
        }
    }
    for _ in 0..header.counts.answers.min(MAX_RECORDS) {
        let Ok(record) = Record::<RData>::read(&mut decoder) else { break };
        match &record.data {
            RData::A(address) => message.addresses.push(IpAddr::V4(address.0)),
            RData::AAAA(address) => message.addresses.push(IpAddr::V6(address.0)),
            _ => {}
        }
    }
    Some(message)
}

/// Names by address, as answers gave them to one container (or, where cgroups are not seen, to the task).
#[derive(Debug)]
pub struct NameCache {
    names: LruCache<(Option<CgroupId>, IpAddr), Box<str>>,
    /// Names pushed out because the cache was full.
    pub evictions: u64,
}

impl NameCache {
    /// An empty cache of `capacity` addresses.
    pub fn new(capacity: NonZeroUsize) -> Self {
        Self { names: LruCache::new(capacity), evictions: 0 }
    }

    /// Remembers what an answer said. Whoever serves a name chooses its addresses: an answer counts for
    /// the container that asked alone, and one that names the container itself counts for none, or
    /// every connection to a local port would be laid to that name.
    pub fn learn(&mut self, cgroup: Option<CgroupId>, message: &Message) {
        let elsewhere = |address: &&IpAddr| {
            let address = address.to_canonical();
            !address.is_loopback() && !address.is_unspecified()
        };
        for address in message.addresses.iter().filter(elsewhere) {
            self.put((cgroup, *address), &message.question);
        }
    }

    fn put(&mut self, key: (Option<CgroupId>, IpAddr), name: &str) {
        if self.names.len() == self.names.cap().get() && !self.names.contains(&key) {
            self.evictions += 1;
        }
        self.names.put(key, name.into());
    }

    /// The name that an answer gave for `address`.
    pub fn name(&mut self, cgroup: Option<CgroupId>, address: IpAddr) -> Option<&str> {
        self.names.get(&(cgroup, address.to_canonical())).map(AsRef::as_ref)
    }

    /// Addresses remembered.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

#[cfg(test)]
pub(crate) fn message_bytes(id: u16, name: &str, answers: &[IpAddr]) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend(if answers.is_empty() { [0x01, 0x00] } else { [0x81, 0x80] });
    bytes.extend([0, 1]);
    bytes.extend(u16::try_from(answers.len()).unwrap().to_be_bytes());
    bytes.extend([0; 4]);
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    for answer in answers {
        bytes.extend([0xc0, 12]);
        match answer {
            IpAddr::V4(v4) => {
                bytes.extend([0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                bytes.extend(v4.octets());
            }
            IpAddr::V6(v6) => {
                bytes.extend([0, 28, 0, 1, 0, 0, 0, 60, 0, 16]);
                bytes.extend(v6.octets());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_question_and_its_answers_are_read() {
        let answers: [IpAddr; 2] = ["203.0.113.9".parse().unwrap(), "2001:db8::9".parse().unwrap()];
        let message = parse(&message_bytes(7, "Pool.Example.test", &answers)).unwrap();
        assert_eq!(
            (message.id, message.question.as_str(), message.question_type.as_str()),
            (7, "pool.example.test", "A")
        );
        assert_eq!(message.addresses, answers);
    }

    #[test]
    fn a_bad_tail_does_not_hide_the_question() {
        let mut bytes = message_bytes(7, "pool.example.test", &["203.0.113.9".parse().unwrap()]);
        bytes.truncate(bytes.len() - 3);
        let message = parse(&bytes).unwrap();
        assert_eq!(message.question, "pool.example.test");
        assert!(message.addresses.is_empty());
    }

    #[test]
    fn the_cache_never_exceeds_its_size_and_counts_what_it_forgets() {
        let mut cache = NameCache::new(NonZeroUsize::new(8).unwrap());
        for n in 0..20_u8 {
            let addresses = vec![IpAddr::from([192, 0, 2, n])];
            cache.learn(None, &Message { id: 0, question: format!("h{n}.test"), question_type: "A".into(), addresses });
            assert!(cache.len() <= 8);
        }
        assert_eq!(cache.evictions, 12);
        assert_eq!(cache.name(None, IpAddr::from([192, 0, 2, 19])), Some("h19.test"));
        assert_eq!(cache.name(None, IpAddr::from([192, 0, 2, 0])), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_mutation_of_a_good_message_makes_it_panic(at in 0_usize..60, byte in any::<u8>(), cut in 0_usize..80) {
            let mut bytes = message_bytes(1, "pool.example.test", &["203.0.113.9".parse().unwrap()]);
            if let Some(slot) = bytes.get_mut(at) { *slot = byte; }
            bytes.truncate(cut);
            let _ = parse(&bytes);
        }
    }
}
