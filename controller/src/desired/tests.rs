//! Screens, bounds and the life of a directory.

use super::*;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;
use tasuki_api::desired::Document;
use tokio::sync::watch;

const HEAD: &str = "apiVersion: tasuki.dev/v1alpha1\nkind: ";

fn scope(name: &str, region: &str) -> String {
    format!("{HEAD}AwsScope\nmetadata: {{ name: {name} }}\nspec: {{ regions: [{region}] }}\n")
}

/// All problems of a text, as people read them.
fn screen(text: &str, width: usize) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("prod.yaml"), text).unwrap();
    let loaded = Loader::default().load(dir.path());
    let shown: Vec<String> = loaded.problems.iter().map(|problem| problem.render(false, width)).collect();
    shown.join("\n\n").replace(&dir.path().display().to_string(), "config")
}

fn messages(text: &str) -> Vec<String> {
    let (parsed, problems) = parse("f.yaml", text);
    let all = parsed.into_iter().flat_map(|one| one.problems).chain(problems);
    all.map(|problem| problem.message).collect()
}

#[test]
fn a_wrong_monitor_is_told_everything_in_one_go() {
    let text = include_str!("testdata/wrong-monitor.yaml");
    insta::assert_snapshot!("wrong_monitor_120", screen(text, 120));
    insta::assert_snapshot!("wrong_monitor_80", screen(text, 80));
}

#[test]
fn the_other_kinds_are_told_too() {
    insta::assert_snapshot!("wrong_others", screen(include_str!("testdata/wrong-others.yaml"), 120));
}

#[test]
fn what_is_not_yaml_or_not_ours_is_told_where_it_stands() {
    insta::assert_snapshot!("not_yaml", screen(include_str!("testdata/not-yaml.yaml"), 120));
}

#[test]
fn one_wrong_field_hides_nothing_that_is_elsewhere() {
    let text = format!(
        "{HEAD}RuntimeMonitor\nmetadata: {{ name: a }}\nspec:\n  mode: Enforced\n  agent:\n    version: 1\n    image: {{ repository: r:1, digest: x }}\n  rollout: {{ waves: [{{ name: a, take: 50% }}] }}\n"
    );
    let found = messages(&text).join("\n");
    for part in ["`Enforced`", "expected text, found the number 1", "carries a tag", "`x` is not a digest", "takes 50%"]
    {
        assert!(found.contains(part), "{part} in {found}");
    }
}

#[test]
fn terminal_sequences_in_a_file_do_not_reach_the_terminal() {
    let text =
        format!("{HEAD}AwsScope\nmetadata: {{ name: a }}\nspec: {{ regions: [eu-west-1], \"\\e[31m\\u202e\": 1 }}\n");
    let shown = screen(&text, 120);
    assert!(shown.contains("unknown field"), "{shown}");
    assert!(!shown.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{shown:?}");
}

#[test]
fn files_that_cannot_be_taken_are_named_and_stop_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    write("a-binary.yaml", &[0x80, 0xff, 0]);
    write("b-zero.yaml", b"a: \0");
    write("c-empty.yml", b"");
    write("d-huge.yaml", &vec![b'#'; (loader::MAX_FILE + 1) as usize]);
    write("e-many.yaml", "---\na: 1\n".repeat(parse::MAX_DOCUMENTS + 1).as_bytes());
    write("f-good.yaml", scope("good", "eu-west-1").as_bytes());
    write("g-bom.yaml", format!("\u{feff}{}", scope("bom", "eu-west-1")).as_bytes());
    write("h-other.txt", b"not read");
    write(".hidden.yaml", b"a: [");
    symlink("/nowhere", dir.path().join("i-dangling.yaml")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(dir.path().join("j-fifo.yaml")).status().unwrap().success());
    let loaded = Loader::default().load(dir.path());
    assert_eq!(loaded.documents.keys().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["bom", "good"]);
    let told =
        |file: &str, words: &str| loaded.problems.iter().any(|p| p.file.ends_with(file) && p.message.contains(words));
    for (file, words) in [
        ("a-binary.yaml", "byte 0 is not UTF-8"),
        ("b-zero.yaml", "byte 3 is zero"),
        ("c-empty.yml", "no document"),
        ("d-huge.yaml", "larger than 2 MiB"),
        ("e-many.yaml", "only the first 1000"),
        ("i-dangling.yaml", "no such file"),
        ("j-fifo.yaml", "not a regular file"),
    ] {
        assert!(
            told(file, words),
            "{file}: {words} in {:?}",
            loaded.problems.iter().map(|p| (&p.file, &p.message)).collect::<Vec<_>>()
        );
    }
    assert!(!loaded.problems.iter().any(|p| p.file.contains("hidden") || p.file.contains("other")));
}

#[test]
fn a_document_that_becomes_bad_keeps_its_last_good_version() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    let mut loader = Loader::default();
    let both = |first: &str| fs::write(&file, format!("{first}---\n{}", scope("b", "us-east-1"))).unwrap();
    both(&scope("a", "eu-west-1"));
    let good = loader.load(dir.path());
    assert_eq!((good.documents.len(), good.held.len()), (2, 0));

    both(&scope("a", "nowhere"));
    let held = loader.load(dir.path());
    assert_eq!(held.hash, good.hash, "the same is in force");
    assert!(held.has_errors() && held.held.contains(&("AwsScope".to_owned(), "a".to_owned())));

    // So broken that not even its name can be told: it may be `a`.
    both("a: [\n");
    assert_eq!(loader.load(dir.path()).hash, good.hash);

    both(&scope("a", "eu-west-2"));
    let mended = loader.load(dir.path());
    assert!(mended.hash != good.hash && mended.held.is_empty() && !mended.has_errors());

    fs::write(&file, scope("b", "us-east-1")).unwrap();
    assert_eq!(loader.load(dir.path()).documents.len(), 1, "what is gone from git is gone");

    fs::remove_dir_all(dir.path()).unwrap();
    let gone = loader.load(dir.path());
    assert!(gone.documents.len() == 1 && gone.has_errors(), "a directory that vanishes takes nothing away");
}

#[test]
fn the_same_content_has_the_same_hash_however_it_is_written() {
    let load = |files: &[(&str, String)]| {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
        Loader::default().load(dir.path()).hash
    };
    let (a, b) = (scope("a", "eu-west-1"), scope("b", "us-east-1"));
    let one = load(&[("x.yaml", format!("# note\n{a}\n---\n{b}"))]);
    assert_eq!(one, load(&[("1.yaml", b), ("2.yml", a.clone())]));
    assert_ne!(one, load(&[("1.yaml", a)]));
}

async fn next(receiver: &mut watch::Receiver<Arc<Loaded>>, wanted: impl Fn(&Loaded) -> bool) {
    let seen = receiver.wait_for(|loaded| wanted(loaded));
    tokio::time::timeout(Duration::from_secs(30), seen).await.expect("a change is seen").unwrap();
}

fn has(loaded: &Loaded, name: &str) -> bool {
    loaded.documents.contains_key(&("AwsScope".to_owned(), name.to_owned()))
}

#[tokio::test]
async fn plain_writes_and_both_kinds_of_swap_are_seen_by_notices_alone() {
    let never = Duration::from_secs(86_400);
    let root = tempfile::tempdir().unwrap();
    // A plain directory, with a directory below that appears later.
    let plain = root.path().join("plain");
    fs::create_dir(&plain).unwrap();
    let (mut seen, _task) = follow(plain.clone(), never).await;
    fs::write(plain.join("a.yaml"), scope("a", "eu-west-1")).unwrap();
    next(&mut seen, |loaded| has(loaded, "a")).await;
    fs::create_dir(plain.join("more")).unwrap();
    fs::write(plain.join("more/b.yaml"), scope("b", "eu-west-1")).unwrap();
    next(&mut seen, |loaded| has(loaded, "b")).await;

    // Kubernetes: files are links into ..data, a link that is replaced by a rename.
    let map = root.path().join("map");
    let publish = |version: &str, name: &str| {
        let real = map.join(format!("..{version}"));
        fs::create_dir_all(&real).unwrap();
        fs::write(real.join("c.yaml"), scope(name, "eu-west-1")).unwrap();
        symlink(format!("..{version}"), map.join("..data_tmp")).unwrap();
        fs::rename(map.join("..data_tmp"), map.join("..data")).unwrap();
    };
    publish("1", "one");
    symlink("..data/c.yaml", map.join("c.yaml")).unwrap();
    let (mut seen, _task) = follow(map.clone(), never).await;
    assert!(has(&seen.borrow(), "one"));
    publish("2", "two");
    next(&mut seen, |loaded| has(loaded, "two") && !has(loaded, "one")).await;
    publish("3", "three");
    next(&mut seen, |loaded| has(loaded, "three")).await;

    // git-sync: the directory itself is a link that is replaced.
    let link = root.path().join("current");
    let publish = |version: &str| {
        let tree = root.path().join(format!("tree-{version}"));
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("d.yaml"), scope(version, "eu-west-1")).unwrap();
        symlink(&tree, root.path().join("new")).unwrap();
        fs::rename(root.path().join("new"), &link).unwrap();
    };
    publish("x");
    let (mut seen, _task) = follow(link.clone(), never).await;
    publish("y");
    next(&mut seen, |loaded| has(loaded, "y") && !has(loaded, "x")).await;
}

#[tokio::test]
async fn without_notices_a_look_finds_the_change() {
    let dir = tempfile::tempdir().unwrap();
    let (mut seen, _task) = follow(dir.path().join("later"), Duration::from_millis(20)).await;
    assert!(seen.borrow().has_errors());
    fs::create_dir(dir.path().join("later")).unwrap();
    fs::write(dir.path().join("later/a.yaml"), scope("a", "eu-west-1")).unwrap();
    next(&mut seen, |loaded| has(loaded, "a") && !loaded.has_errors()).await;
}

fn repository() -> &'static FilePath {
    FilePath::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn every_sample_is_good() {
    let mut kinds = std::collections::BTreeSet::new();
    for entry in fs::read_dir(repository().join("manifests/samples")).unwrap() {
        let loaded = Loader::default().load(&entry.unwrap().path());
        assert!(
            loaded.problems.is_empty(),
            "{}",
            loaded.problems.iter().map(|p| p.render(false, 120)).collect::<String>()
        );
        kinds.extend(loaded.documents.keys().map(|(kind, _)| kind.clone()));
    }
    assert_eq!(kinds.len(), Document::KINDS.len(), "every kind has a sample: {kinds:?}");
}

#[test]
fn every_field_is_described() {
    fn walk(root: &serde_json::Value, schema: &serde_json::Value, at: &str) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let target = field["$ref"].as_str().and_then(|r| r.strip_prefix("#/$defs/")).map(|n| &root["$defs"][n]);
            let described = field["description"].is_string() || target.is_some_and(|t| t["description"].is_string());
            assert!(described, "{at}.{name} has no description");
        }
    }
    for kind in Document::KINDS {
        let schema = schema_of(kind).unwrap();
        walk(&schema, &schema, kind);
        for (name, part) in schema["$defs"].as_object().unwrap() {
            walk(&schema, part, &format!("{kind}: {name}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_bytes_break_the_loader(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), &bytes).unwrap();
        let loaded = Loader::default().load(dir.path());
        loaded.problems.iter().for_each(|problem| drop(problem.render(true, 80)));
    }

    #[test]
    fn no_damage_to_a_document_breaks_the_loader(at in 0usize..4000, cut in 0usize..40, insert in "[a-z:{}\\[\\]&*!|>'\"%@`#, \t\n-]{0,8}") {
        let text = include_str!("../../../manifests/samples/enforce.yaml");
        let at = (0..=at.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        let end = (at + cut..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len());
        let damaged = format!("{}{insert}{}", &text[..at], &text[end..]);
        let (parsed, _) = parse("a.yaml", &damaged);
        for one in parsed {
            prop_assert!(one.document.is_some() || !one.problems.is_empty(), "refused without a word: {}", damaged);
            for problem in one.problems {
                let shown = problem.render(false, 80);
                prop_assert!(problem.line >= 1 && problem.line <= damaged.lines().count().max(1), "{}", shown);
            }
        }
    }
}
