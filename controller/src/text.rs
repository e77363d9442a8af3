//! Text for people: escaped, shortened, relative.
//!
//! Names, arguments, paths and AWS's words may be written by an attacker. Nothing of that reaches a
//! terminal or a page but by [`escape`].

use jiff::Timestamp;

/// The text with everything that a terminal or a reader could take for something else made visible:
/// control characters (ANSI sequences begin with one), line ends, and the marks that reorder or hide
/// text (Unicode TR 36, "bidirectional text spoofing").
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || is_deceptive(c) => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// Characters that show nothing, or change how others show.
fn is_deceptive(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// [`escape`], and not more than `most` characters, with `…` for what is left out.
pub fn escape_to(text: &str, most: usize) -> String {
    let whole = escape(text);
    match whole.char_indices().nth(most) {
        Some(_) => whole.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
        None => whole,
    }
}

/// The last part of an ARN or path: enough to tell things of one table apart.
pub fn short_arn(arn: &str) -> &str {
    if arn.starts_with("arn:") || tasuki_api::kubernetes::is_name(arn) {
        arn.rsplit(['/', ':']).next().unwrap_or(arn)
    } else {
        arn
    }
}

/// How long ago, in the unit that a person would say.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second());
    match seconds {
        ..=-5 => format!("in {}", span(-seconds)),
        -4..=0 => "now".to_owned(),
        _ => format!("{} ago", span(seconds)),
    }
}

fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `97.3 %`. Never rounds up to 100 % what is not whole.
pub fn percent(ratio: f64) -> String {
    let tenths = (ratio * 1000.0).floor();
    let tenths = if ratio < 1.0 { tenths.min(999.0) } else { 1000.0 };
    match tenths as i64 {
        t if t % 10 == 0 => format!("{} %", t / 10),
        t => format!("{}.{} %", t / 10, t % 10),
    }
}

/// `1 task`, `2 tasks`.
pub fn many(n: u64, one: &str) -> String {
    format!("{n} {one}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_deceives_is_made_visible() {
        assert_eq!(escape("\u{1b}[31mred\u{1b}]0;t\u{7}"), "\\u{1b}[31mred\\u{1b}]0;t\\u{7}");
        assert_eq!(escape("a\u{202e}cod.exe\nb"), "a\\u{202e}cod.exe\\nb");
        assert_eq!(escape("\u{9b}31m"), "\\u{9b}31m", "an 8-bit CSI is an ANSI sequence too");
        assert_eq!(escape("rösti 日本"), "rösti 日本");
        assert_eq!(escape_to("abcdef", 4), "abc…");
    }

    proptest! {
        #[test]
        fn no_escaped_text_holds_a_control_character(text in any::<String>(), most in 0usize..50) {
            prop_assert!(!escape(&text).chars().any(|c| c.is_control() || is_deceptive(c)));
            prop_assert!(escape_to(&text, most).chars().count() <= most.max(1));
        }
    }

    #[test]
    fn a_share_is_whole_only_when_it_is() {
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(percent(0.99999), "99.9 %");
        assert_eq!(percent(0.973), "97.3 %");
        assert_eq!(percent(0.0), "0 %");
    }

    #[test]
    fn times_are_relative() {
        let at = |s| Timestamp::from_second(s).unwrap();
        assert_eq!(ago(at(100), at(112)), "12 s ago");
        assert_eq!(ago(at(0), at(3600)), "60 min ago");
        assert_eq!(ago(at(0), at(90_000)), "25 h ago");
        assert_eq!(ago(at(100), at(100)), "now");
        assert_eq!(ago(at(200), at(100)), "in 100 s");
    }
}
