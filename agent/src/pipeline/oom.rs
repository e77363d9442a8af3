//! Being spared: on a full node the kernel ends what has the highest score, and an agent that asked for
//! little memory would be the first.

use std::path::Path;

/// Asked for: below every workload's, above what the kubelet gives itself (−999).
const SCORE: i32 = -900;
/// The own score; lowering it takes CAP_SYS_RESOURCE.
const OWN: &str = "/proc/self/oom_score_adj";

/// Lowers this process's score. Gives the score in force, and what was refused.
pub fn spare() -> (i32, Option<String>) {
    lower(Path::new(OWN))
}

fn lower(path: &Path) -> (i32, Option<String>) {
    let read = || std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let before = read();
    if before <= SCORE {
        return (before, None);
    }
    let refused = std::fs::write(path, SCORE.to_string()).err();
    (read(), refused.map(|error| format!("{}: {error}; CAP_SYS_RESOURCE allows it", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_lowered_and_never_raised() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("oom_score_adj");
        for (before, after) in [("0\n", SCORE), ("984", SCORE), ("-998", -998)] {
            std::fs::write(&file, before).unwrap();
            assert_eq!(lower(&file), (after, None));
        }
        let (score, refused) = lower(&directory.path().join("missing/oom_score_adj"));
        assert!(score == 0 && refused.unwrap().contains("CAP_SYS_RESOURCE"));
    }
}
