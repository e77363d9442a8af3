//! Durations (`10m`), sizes (`128Mi`) and ratios (`5%`) as they are written in YAML.

use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, str::FromStr};

/// A text that is not a duration, size or ratio.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}: write {form}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    form: &'static str,
}

fn error<T>(text: &str, what: &'static str, form: &'static str) -> Result<T, UnitError> {
    let text = text.chars().take(64).collect();
    Err(UnitError { text, what, form })
}

/// Splits `text` into its leading decimal digits and the rest.
fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// A whole number of seconds, written as `90s`, `10m`, `2h`, `1d` or a sum such as `1h30m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(u64);

impl Duration {
    /// A duration of `seconds`.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds)
    }
    /// The whole duration in seconds.
    pub const fn as_secs(self) -> u64 {
        self.0
    }
    /// The same span as the standard library's type.
    pub const fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_secs(self.0)
    }
}

impl FromStr for Duration {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || error(text, "duration", "a number with s, m, h or d, such as 10m or 1h30m");
        let (mut rest, mut total) = (text, 0u64);
        if rest.is_empty() {
            return bad();
        }
        while !rest.is_empty() {
            let Some((n, tail)) = number(rest) else { return bad() };
            let (unit, after) = match tail.as_bytes().first() {
                Some(b's') => (1, &tail[1..]),
                Some(b'm') => (60, &tail[1..]),
                Some(b'h') => (3_600, &tail[1..]),
                Some(b'd') => (86_400, &tail[1..]),
                _ => return bad(),
            };
            let Some(sum) = n.checked_mul(unit).and_then(|s| total.checked_add(s)) else { return bad() };
            (total, rest) = (sum, after);
        }
        Ok(Self(total))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (unit, name) in [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")] {
            if rest >= unit {
                write!(f, "{}{name}", rest / unit)?;
                rest %= unit;
            }
        }
        Ok(())
    }
}

/// A number of bytes, written as `64Ki`, `128Mi` or `1Gi`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// A size of `mib` mebibytes.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }
    /// The size in bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
    /// The size in whole mebibytes, rounded up (ECS counts memory in MiB).
    pub const fn as_mib(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }
}

impl FromStr for Size {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || error(text, "size", "a number with Ki, Mi or Gi, such as 128Mi");
        let Some((n, unit)) = number(text) else { return bad() };
        let shift = match unit {
            "Ki" => 10,
            "Mi" => 20,
            "Gi" => 30,
            _ => return bad(),
        };
        match n.checked_mul(1 << shift) {
            Some(bytes) => Ok(Self(bytes)),
            None => bad(),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0 {
            n if n.is_multiple_of(1 << 30) && n > 0 => (30, "Gi"),
            n if n.is_multiple_of(1 << 20) => (20, "Mi"),
            _ => (10, "Ki"),
        };
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

/// A share from 0 % to 100 %, written as `5%` or `0.1%`; kept in hundredths of a percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ratio(u32);

impl Ratio {
    /// A whole number of percent; more than 100 is taken as 100.
    pub const fn from_percent(percent: u32) -> Self {
        Self(if percent > 100 { 10_000 } else { percent * 100 })
    }
    /// The ratio as a number from 0.0 to 1.0.
    pub fn as_fraction(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
    /// How many of `total` this ratio takes, rounded up, so that a canary is never empty.
    pub fn of(self, total: usize) -> usize {
        usize::try_from((total as u128 * u128::from(self.0)).div_ceil(10_000)).unwrap_or(total)
    }
}

impl FromStr for Ratio {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || error(text, "ratio", "a percentage from 0% to 100%, such as 5% or 0.1%");
        let Some(digits) = text.strip_suffix('%') else { return bad() };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        let all_digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !all_digits(whole) || !all_digits(fraction) || fraction.len() > 2 {
            return bad();
        }
        let scale = if fraction.len() == 1 { 10 } else { 1 };
        let (Ok(whole), Ok(fraction)) = (whole.parse::<u32>(), fraction.parse::<u32>()) else { return bad() };
        match whole.checked_mul(100).and_then(|w| w.checked_add(fraction * scale)) {
            Some(hundredths) if hundredths <= 10_000 => Ok(Self(hundredths)),
            _ => bad(),
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => write!(f, "{whole}%"),
            (whole, part) if part % 10 == 0 => write!(f, "{whole}.{}%", part / 10),
            (whole, part) => write!(f, "{whole}.{part:02}%"),
        }
    }
}

/// The three units travel as their text form, with the pattern in the schema.
macro_rules! as_text {
    ($type:ty, $name:literal, $pattern:literal) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = Cow::<str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": $pattern, "maxLength": 32 })
            }
        }
    };
}
as_text!(Duration, "Duration", "^([0-9]+[smhd])+$");
as_text!(Size, "Size", "^[0-9]+(Ki|Mi|Gi)$");
as_text!(Ratio, "Ratio", "^[0-9]{1,3}(\\.[0-9]{1,2})?%$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read_back() {
        for text in ["0s", "10m", "1h30m", "2d", "1d2h3m4s"] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), text);
        }
        for text in ["64Ki", "128Mi", "1Gi", "0Mi"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for text in ["0%", "5%", "0.1%", "99.95%", "12.05%", "100%"] {
            assert_eq!(text.parse::<Ratio>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn nonsense_and_overflow_are_refused_with_the_form_to_write() {
        for text in ["", "10", "m", "10x", "-1s", "18446744073709551615d", "1.5h"] {
            assert!(text.parse::<Duration>().unwrap_err().to_string().contains("such as 10m"), "{text}");
        }
        for text in ["", "128", "128MB", "99999999999999999Gi"] {
            assert!(text.parse::<Size>().unwrap_err().to_string().contains("such as 128Mi"), "{text}");
        }
        for text in ["", "5", "%", "101%", "5.%", ".5%", "1.234%", "4294967295%"] {
            assert!(text.parse::<Ratio>().unwrap_err().to_string().contains("such as 5%"), "{text}");
        }
    }

    #[test]
    fn a_canary_of_a_small_fleet_is_never_empty() {
        assert_eq!(Ratio::from_percent(5).of(3), 1);
        assert_eq!(Ratio::from_percent(5).of(0), 0);
        assert_eq!(Ratio::from_percent(100).of(7), 7);
    }
}
