//! How a finding lies on disk: magic, length, checksum, payload; one after the other.
//!
//! ```text
//!  "TSK1" │ length u32 LE │ first 8 bytes of SHA-256(payload) │ payload
//! ```
//!
//! *Guarantees*: [`scan`] finds every record that was written whole, whatever follows or precedes it:
//! a torn tail ends the scan, a damaged record is skipped by looking for the next magic.

use aws_lc_rs::digest::{SHA256, digest};

/// First bytes of each record.
const MAGIC: [u8; 4] = *b"TSK1";
/// Bytes before the payload.
pub const HEADER: usize = 16;
/// Largest payload, bytes: as the gateway takes it.
pub const LARGEST: usize = 64 << 10;

fn checksum(payload: &[u8]) -> [u8; 8] {
    let mut first = [0; 8];
    first.copy_from_slice(&digest(&SHA256, payload).as_ref()[..8]);
    first
}

/// Appends a record of `payload` (at most [`LARGEST`] bytes) to `to`.
pub fn write(payload: &[u8], to: &mut Vec<u8>) {
    to.extend(MAGIC);
    to.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    to.extend(checksum(payload));
    to.extend(payload);
}

/// What was found in a segment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Offset and length of each whole payload.
    pub payloads: Vec<(u64, u32)>,
    /// Stretches of bytes that are no record.
    pub damaged: u64,
    /// The last record was cut off, as by a crash.
    pub torn: bool,
}

/// Finds the records in a segment.
pub fn scan(bytes: &[u8]) -> Scan {
    let (mut scan, mut at, mut lost) = (Scan::default(), 0, false);
    while at < bytes.len() {
        let rest = &bytes[at..];
        match read(rest) {
            Read::Whole(length) => {
                scan.payloads.push(((at + HEADER) as u64, u32::try_from(length).unwrap_or(0)));
                at += HEADER + length;
                lost = false;
                continue;
            }
            // Only the very end can be torn; a length that reaches beyond it may also be damage, so
            // the search goes on behind it.
            Read::Short => scan.torn = true,
            Read::Damaged => {}
        }
        if !lost {
            scan.damaged += 1;
            lost = true;
        }
        at += 1 + rest[1..].windows(MAGIC.len()).position(|window| window == MAGIC).unwrap_or(rest.len() - 1);
    }
    // A torn tail is what a crash leaves, not damage; it is one only where nothing whole follows.
    if scan.torn && lost {
        scan.damaged -= 1;
    } else {
        scan.torn = false;
    }
    scan
}

enum Read {
    Whole(usize),
    Short,
    Damaged,
}

fn read(bytes: &[u8]) -> Read {
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        return Read::Damaged;
    }
    let (Some(length), Some(sum)) = (bytes.get(4..8), bytes.get(8..HEADER)) else { return Read::Short };
    let length = length.try_into().map_or(usize::MAX, |bytes| u32::from_le_bytes(bytes) as usize);
    if length > LARGEST {
        return Read::Damaged;
    }
    match bytes.get(HEADER..HEADER + length) {
        None => Read::Short,
        Some(payload) if checksum(payload) == sum => Read::Whole(length),
        Some(_) => Read::Damaged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment(payloads: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for payload in payloads {
            write(payload, &mut bytes);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        // Payloads that look like records themselves must not confuse the scan.
        let one = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            Just(b"TSK1TSK1".to_vec()),
            Just({
                let mut inner = Vec::new();
                write(b"inner", &mut inner);
                inner
            }),
        ];
        prop::collection::vec(one, 0..12)
    }

    proptest! {
        #[test]
        fn any_truncation_loses_nothing_before_it(payloads in payloads(), cut in any::<prop::sample::Index>()) {
            let (bytes, ends) = segment(&payloads);
            let cut = cut.index(bytes.len() + 1);
            let found = scan(&bytes[..cut]);
            let whole = ends.iter().filter(|end| **end <= cut).count();
            for ((offset, length), payload) in found.payloads.iter().zip(&payloads).take(whole) {
                let start = usize::try_from(*offset).unwrap();
                prop_assert_eq!(&bytes[start..start + *length as usize], payload.as_slice());
            }
            prop_assert!(found.payloads.len() >= whole);
            let boundary = cut == 0 || ends.contains(&cut);
            if boundary {
                prop_assert_eq!((found.damaged, found.torn), (0, false));
                prop_assert_eq!(found.payloads.len(), whole);
            }
        }

        #[test]
        fn a_flipped_byte_loses_one_record_and_no_other(
            payloads in payloads(), at in any::<prop::sample::Index>(), bit in 0u8..8,
        ) {
            let (mut bytes, ends) = segment(&payloads);
            prop_assume!(!bytes.is_empty());
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let found = scan(&bytes);
            let hit = ends.iter().position(|end| at < *end).unwrap();
            for (index, end) in ends.iter().enumerate().filter(|(index, _)| *index != hit) {
                let start = (end - payloads[index].len()) as u64;
                prop_assert!(found.payloads.contains(&(start, u32::try_from(payloads[index].len()).unwrap())));
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = scan(&bytes);
        }
    }

    #[test]
    fn a_torn_tail_is_told_apart_from_damage() {
        let (bytes, _) = segment(&[b"one".to_vec(), b"two".to_vec()]);
        let torn = scan(&bytes[..bytes.len() - 1]);
        assert_eq!((torn.payloads.len(), torn.damaged, torn.torn), (1, 0, true));
        let mut damaged = bytes.clone();
        damaged[HEADER] ^= 1;
        let damaged = scan(&damaged);
        assert_eq!((damaged.payloads.len(), damaged.damaged, damaged.torn), (1, 1, false));
    }
}
