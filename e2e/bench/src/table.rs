//! The Markdown table that is printed.

use crate::machine;
use std::fmt;

/// One figure.
#[derive(Clone, Debug)]
pub struct Row {
    section: String,
    what: String,
    value: String,
    budget: String,
    met: &'static str,
    load: String,
}

impl Row {
    /// A figure with a budget that it should not exceed.
    pub fn within(section: &str, what: &str, value: f64, unit: &str, budget: f64) -> Self {
        let met = if value <= budget { "yes" } else { "**no**" };
        let budget = format!("≤ {}", with_unit(budget, unit));
        Self { budget, met, ..Self::noted(section, what, &with_unit(value, unit)) }
    }

    /// A figure that only informs.
    pub fn noted(section: &str, what: &str, value: &str) -> Self {
        Self {
            section: section.to_owned(),
            what: what.to_owned(),
            value: value.to_owned(),
            budget: "".to_owned(),
            met: "",
            load: machine::load(),
        }
    }

    /// Something that must be so.
    pub fn must(section: &str, what: &str, value: &str, budget: &str, met: bool) -> Self {
        let met = if met { "yes" } else { "**no**" };
        Self { budget: budget.to_owned(), met, ..Self::noted(section, what, value) }
    }

    /// A section that could not be measured.
    pub fn failed(section: &str, error: &anyhow::Error) -> Self {
        let reason = format!("{error:#}").replace('\n', " ").replace('|', "/");
        Self { met: "**not measured**", ..Self::noted(section, &reason, "") }
    }
}

/// Three figures that count, and the unit.
pub fn with_unit(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        _ if unit == "×" => 3,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    match unit {
        "×" => format!("{text}×"),
        _ => format!("{text} {unit}").trim_end().to_owned(),
    }
}

/// All figures of a run; each is also told on standard error when it is known.
pub struct Table {
    rows: Vec<Row>,
    began: jiff::Zoned,
}

impl Table {
    /// An empty one.
    pub fn start() -> Self {
        Self { rows: Vec::new(), began: jiff::Zoned::now() }
    }

    /// Adds rows.
    pub fn extend(&mut self, rows: Vec<Row>) {
        rows.iter().for_each(|row| eprintln!("{row}"));
        self.rows.extend(rows);
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { section, what, value, budget, met, load } = self;
        write!(f, "| {section} | {what} | {value} | {budget} | {met} | {load} |")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let build = if cfg!(debug_assertions) { "debug build: these figures mean nothing" } else { "release build" };
        writeln!(f, "{}; {}; commit {}; {build}\n", machine::describe(), self.began.date(), machine::commit())?;
        writeln!(f, "| section | what | measured | budget | met | load |\n|---|---|---|---|---|---|")?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_over_its_budget_says_so() {
        let row = Row::within("decide", "one change", 61.25, "µs", 50.0).to_string();
        assert!(row.starts_with("| decide | one change | 61.2 µs | ≤ 50 µs | **no** |"), "{row}");
        assert!(Row::within("s", "w", 1.0, "×", 1.05).to_string().contains("| 1× | ≤ 1.05× | yes |"));
        assert_eq!(with_unit(100.0, "MiB"), "100 MiB");
    }
}
