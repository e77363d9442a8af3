//! The one way by which text gets into a page.

use crate::text::escape;
use jiff::Timestamp;

/// Text for an element or a quoted attribute: deceptive characters made visible, then HTML's own
/// five escaped.
pub fn text(raw: &str) -> String {
    markup(&escape(raw))
}

/// Text whose lines are kept, for `<pre>`.
pub fn lines(raw: &str) -> String {
    raw.lines().map(|line| text(line) + "\n").collect()
}

fn markup(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A value for an address: everything but letters, digits and `-._~` as %XX.
pub fn address(raw: &str) -> String {
    let mut out = String::new();
    for byte in raw.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// `12 s ago`, with the exact time for machines and on request.
pub fn time(at: Timestamp, now: Timestamp) -> String {
    format!("<time datetime=\"{at}\" title=\"{at}\">{}</time>", crate::text::ago(at, now))
}

/// A table. Cells are markup: what comes from outside must have gone through [`text`].
pub fn table(caption: &str, columns: &[&str], rows: &[Vec<String>]) -> String {
    let head: String = columns.iter().map(|column| format!("<th scope=\"col\">{}</th>", text(column))).collect();
    let mut body = String::new();
    for row in rows {
        body += "<tr>";
        for (i, cell) in row.iter().enumerate() {
            body += &match i {
                0 => format!("<th scope=\"row\">{cell}</th>"),
                _ => format!("<td>{cell}</td>"),
            };
        }
        body += "</tr>\n";
    }
    format!(
        "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table><caption>{0}</caption><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n",
        text(caption)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_text_opens_an_element_or_ends_an_attribute(raw in any::<String>()) {
            prop_assert!(!text(&raw).contains(['<', '>', '"', '\'']));
            prop_assert!(address(&raw).is_ascii() && !address(&raw).contains(['&', '"', '<', ' ', '/', '?', '#']));
        }
    }

    #[test]
    fn text_is_escaped_once() {
        assert_eq!(text("<b>&amp;\u{202e}"), "&lt;b&gt;&amp;amp;\\u{202e}");
        assert_eq!(address("arn:aws:ecs/x y"), "arn%3Aaws%3Aecs%2Fx%20y");
    }
}
