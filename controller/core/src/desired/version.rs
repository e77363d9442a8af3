//! Agent versions, compared as numbers.

/// A version such as `1.4.2` or `1.4.2-rc.1`; a pre-release is older than its release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    numbers: [u64; 3],
    pre: Option<String>,
}

impl Version {
    /// A released version.
    pub const fn release(major: u64, minor: u64, patch: u64) -> Self {
        Self { numbers: [major, minor, patch], pre: None }
    }

    /// Reads up to three numbers, and what follows `-`; build metadata after `+` is ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_start_matches('v').split('+').next()?;
        let (numbers, pre) = match text.split_once('-') {
            Some((numbers, pre)) => (numbers, Some(pre.to_owned())),
            None => (text, None),
        };
        let mut parsed = [0; 3];
        let mut parts = numbers.split('.');
        for slot in &mut parsed {
            match parts.next() {
                Some(part) => *slot = part.parse().ok()?,
                None => break,
            }
        }
        (parts.next().is_none() && !numbers.is_empty()).then_some(Self { numbers: parsed, pre })
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        use std::cmp::Ordering::{Greater, Less};
        self.numbers.cmp(&other.numbers).then_with(|| match (&self.pre, &other.pre) {
            (None, Some(_)) => Greater,
            (Some(_), None) => Less,
            (a, b) => a.cmp(b),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        let v = |t| Version::parse(t).unwrap();
        assert!(v("1.10.0") > v("1.9.9") && v("1.4") == v("1.4.0") && v("v1.4.2-rc.1") < v("1.4.2"));
        assert_eq!((Version::parse("latest"), Version::parse(""), Version::parse("1.2.3.4")), (None, None, None));
    }
}
