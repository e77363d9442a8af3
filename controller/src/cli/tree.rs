//! Trees as text.

/// A line and what hangs below it. Labels must be escaped already.
pub struct Branch {
    /// The line.
    pub label: String,
    /// What hangs below it.
    pub children: Vec<Branch>,
}

impl Branch {
    /// A line with nothing below.
    pub fn leaf(label: String) -> Self {
        Self { label, children: Vec::new() }
    }
}

/// Draws a tree, two blanks from the margin.
pub fn draw(root: &Branch) -> String {
    let mut out = format!("  {}\n", root.label);
    below(root, "  ", &mut out);
    out
}

fn below(branch: &Branch, indent: &str, out: &mut String) {
    for (i, child) in branch.children.iter().enumerate() {
        let last = i + 1 == branch.children.len();
        *out += &format!("{indent}{}{}\n", if last { "└─ " } else { "├─ " }, child.label);
        below(child, &format!("{indent}{}", if last { "   " } else { "│  " }), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_end_in_corners() {
        let leaf = |label: &str| Branch::leaf(label.to_owned());
        let inner = Branch { label: "b".to_owned(), children: vec![leaf("c"), leaf("d")] };
        let root = Branch { label: "a".to_owned(), children: vec![inner, leaf("e")] };
        assert_eq!(draw(&root), "  a\n  ├─ b\n  │  ├─ c\n  │  └─ d\n  └─ e\n");
    }
}
