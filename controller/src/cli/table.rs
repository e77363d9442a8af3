//! The one table printer.

use super::terminal::Terminal;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};

/// A column.
pub struct Column {
    /// Its title.
    pub title: &'static str,
    /// Numbers stand right.
    pub right: bool,
    /// May be broken over several lines where the terminal is narrow. Others keep their width.
    pub gives: bool,
}

/// A column of words that is never broken.
pub const fn fixed(title: &'static str) -> Column {
    Column { title, right: false, gives: false }
}
/// A column of numbers.
pub const fn number(title: &'static str) -> Column {
    Column { title, right: true, gives: false }
}
/// A column that gives way where the terminal is narrow.
pub const fn text(title: &'static str) -> Column {
    Column { title, right: false, gives: true }
}

/// Prints a table that fits the terminal. Cells must be escaped already.
pub fn render(columns: &[Column], rows: Vec<Vec<String>>, terminal: Terminal) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(u16::try_from(terminal.width).unwrap_or(u16::MAX))
        .set_header(columns.iter().map(|column| column.title).collect::<Vec<_>>());
    for row in rows {
        table.add_row(row);
    }
    let last = columns.len().saturating_sub(1);
    let content = table.column_max_content_widths();
    // What cannot be broken comes first; but no column takes more than half of a narrow terminal.
    let half = u16::try_from(terminal.width / 2).unwrap_or(u16::MAX);
    for (i, (column, style)) in table.column_iter_mut().zip(columns).enumerate() {
        column.set_padding((0, if i == last { 0 } else { 2 }));
        if style.right {
            column.set_cell_alignment(CellAlignment::Right);
        }
        if !style.gives && content.get(i).is_some_and(|width| *width <= half) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        } else if !style.gives {
            column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(half)));
        }
    }
    let mut out = String::new();
    for (i, line) in table.lines().enumerate() {
        let line = line.trim_end();
        match i == 0 && terminal.colour {
            true => out += &format!("{}{line}{}\n", anstyle::Style::new().bold().render(), anstyle::Reset.render()),
            false => out += &format!("{line}\n"),
        }
    }
    out
}
