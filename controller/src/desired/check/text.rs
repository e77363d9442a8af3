//! The forms that texts of AWS, Kubernetes and Tasuki have.

use std::net::IpAddr;

/// A text for a message: not longer than a line.
pub fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

/// A DNS label (RFC 1123): what Kubernetes takes as a name.
pub fn is_name(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    bytes.len() <= 63 && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
}

/// An AWS account id: 12 digits.
pub fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// The form of a Region's name, such as `eu-west-1` or `us-gov-east-1`.
pub fn is_region(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let word = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
    match parts.as_slice() {
        [first, middle @ .., last] => {
            first.len() == 2
                && !middle.is_empty()
                && word(first)
                && middle.iter().all(word)
                && matches!(last.as_bytes(), [b'1'..=b'9'] | [b'1'..=b'9', b'0'..=b'9'])
        }
        _ => false,
    }
}

/// The name of an IAM role (letters, digits and `+=,.@_-`, at most 64), without a path.
pub fn is_role_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b);
    !text.is_empty() && text.len() <= 64 && text.bytes().all(allowed)
}

/// `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_sha256)
}

/// 64 hexadecimal digits.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b.to_ascii_lowercase()))
}

/// `MAJOR.MINOR.PATCH` with an optional `-pre.release`, as comparable numbers.
pub fn version(text: &str) -> Option<([u64; 3], &str)> {
    let (numbers, pre) = text.split_once('-').unwrap_or((text, ""));
    let mut parts = numbers.split('.');
    let mut number = || {
        let part = parts.next()?;
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        (digits && (part == "0" || !part.starts_with('0'))).then(|| part.parse::<u64>().ok())?
    };
    let numbers = [number()?, number()?, number()?];
    let pre_ok = pre.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-');
    let dash_ok = pre.is_empty() != text.contains('-');
    (parts.next().is_none() && pre_ok && dash_ok).then_some((numbers, pre))
}

/// `HH:MM` as minutes since midnight.
pub fn clock(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let two =
        |part: &str| (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse::<u32>().ok())?;
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

/// An address or a CIDR block; says what is wrong.
pub fn network(text: &str) -> Result<(), &'static str> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else { return Err("not an address or a CIDR block") };
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let Some(prefix) = prefix else { return Ok(()) };
    let Some(prefix) = prefix.parse::<u32>().ok().filter(|p| *p <= bits && !prefix.starts_with('+')) else {
        return Err("its prefix length is out of range");
    };
    let host = match address {
        IpAddr::V4(v4) => prefix < 32 && v4.to_bits() & (u32::MAX >> prefix) != 0,
        IpAddr::V6(v6) => prefix < 128 && v6.to_bits() & (u128::MAX >> prefix) != 0,
    };
    if host { Err("it has bits set behind its prefix") } else { Ok(()) }
}

/// A domain name: labels of at most 63, 253 in all, at least two labels.
pub fn is_domain(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.len() <= 253 && text.contains('.') && text.split('.').all(label) && text.parse::<IpAddr>().is_err()
}

/// `Purpose:Runtime/Name`, the form of a finding type.
pub fn is_finding_type(text: &str) -> bool {
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"&.!-".contains(&b));
    let parts =
        text.split_once(':').and_then(|(purpose, rest)| rest.split_once('/').map(|(area, name)| [purpose, area, name]));
    text.len() <= 128 && parts.is_some_and(|parts| parts.into_iter().all(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert!(is_name("prod-1") && !is_name("Prod") && !is_name("-a") && !is_name("") && !is_name(&"a".repeat(64)));
        assert!(is_region("eu-west-1") && is_region("us-gov-east-1") && is_region("us-iso-east-1"));
        for text in ["eu-west", "eu-west-0", "EU-west-1", "eu--1", "euwest1", "", "eu-west-1a"] {
            assert!(!is_region(text), "{text}");
        }
        assert_eq!(version("1.4.2"), Some(([1, 4, 2], "")));
        assert_eq!(version("1.4.2-rc.1"), Some(([1, 4, 2], "rc.1")));
        for text in ["1.4", "v1.4.2", "1.4.2.0", "1.04.2", "1.4.2-", "", "1..2"] {
            assert_eq!(version(text), None, "{text}");
        }
        assert_eq!(clock("09:30"), Some(570));
        assert!(["9:30", "24:00", "09:60", "0930", "+9:00"].iter().all(|text| clock(text).is_none()));
        assert!(network("10.0.0.0/8").is_ok() && network("::1").is_ok() && network("10.0.0.1/8").is_err());
        assert!(network("0.0.0.0/0").is_ok() && network("1.2.3.4/33").is_err() && network("x").is_err());
        assert!(is_domain("pool.example.test") && is_domain("_dmarc.example.test.") && !is_domain("localhost"));
        assert!(!is_domain("1.2.3.4") && !is_domain("a..b") && !is_domain("*.example.test"));
        assert!(is_finding_type("Backdoor:Runtime/C&CActivity.B!DNS") && !is_finding_type("NewBinaryExecuted"));
    }
}
