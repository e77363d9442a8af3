//! Name filters: names to take and names to leave, with `*` and `?`.

use tasuki_api::desired::NameFilter;
use wildmatch::WildMatch;

/// A compiled [`NameFilter`].
#[derive(Clone, Debug, Default)]
pub struct Names {
    include: Vec<WildMatch>,
    exclude: Vec<WildMatch>,
}

impl Names {
    /// Compiles a filter.
    pub fn compile(filter: &NameFilter) -> Self {
        let all = |patterns: &[String]| patterns.iter().map(|p| WildMatch::new(p)).collect();
        Self { include: all(&filter.include), exclude: all(&filter.exclude) }
    }

    /// Whether this name is taken.
    pub fn take(&self, name: &str) -> bool {
        (self.include.is_empty() || self.include.iter().any(|p| p.matches(name)))
            && !self.exclude.iter().any(|p| p.matches(name))
    }
}

/// Whether some name matches both patterns.
pub(super) fn may_meet(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // meet[i][j]: the rests a[i..] and b[j..] have a name in common.
    let mut meet = vec![vec![false; b.len() + 1]; a.len() + 1];
    for i in (0..=a.len()).rev() {
        for j in (0..=b.len()).rev() {
            meet[i][j] = match (a.get(i), b.get(j)) {
                (None, None) => true,
                (Some('*'), None) => meet[i + 1][j],
                (None, Some('*')) => meet[i][j + 1],
                // The star ends here, or swallows one more of the other side.
                (Some('*'), Some(_)) | (Some(_), Some('*')) => meet[i + 1][j] || meet[i][j + 1],
                (Some(x), Some(y)) => (x == y || *x == '?' || *y == '?') && meet[i + 1][j + 1],
                _ => false,
            };
        }
    }
    meet[0][0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exclude_wins() {
        let filter = NameFilter { include: vec!["prod-*".into()], exclude: vec!["prod-legacy".into()] };
        let names = Names::compile(&filter);
        assert!(names.take("prod-a") && !names.take("prod-legacy") && !names.take("dev-a"));
        assert!(Names::default().take("anything"));
    }

    #[test]
    fn patterns_that_share_a_name_meet() {
        for (a, b, met) in [
            ("prod-*", "dev-*", false),
            ("prod-*", "*-a", true),
            ("*", "", true),
            ("a?c", "abc", true),
            ("a", "b", false),
            ("a*", "a", true),
            ("*x*", "*y*", true),
            ("ab*", "a?d", true),
            ("ab*d", "ac*d", false),
        ] {
            assert_eq!(may_meet(a, b), met, "{a} {b}");
            assert_eq!(may_meet(b, a), met, "{b} {a}");
        }
    }

    proptest! {
        #[test]
        fn a_common_name_is_never_overlooked(a in "[ab*?]{0,6}", b in "[ab*?]{0,6}", name in "[ab]{0,6}") {
            if WildMatch::new(&a).matches(&name) && WildMatch::new(&b).matches(&name) {
                prop_assert!(may_meet(&a, &b));
            }
        }
    }
}
