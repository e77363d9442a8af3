//! YAML text to values, with the line and column of any path, within bounds.
//!
//! The parser gives no positions for what it accepts. To find one, the text is read again with a
//! visitor that refuses exactly the value wanted: the parser then says where it stood. That is one
//! pass per problem, and it can never disagree with how the document was read.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::Cell;
use std::fmt;

/// Values per document; a monitor of a large organization has some thousand.
pub const MAX_VALUES: usize = 100_000;
/// Bytes of text per document once aliases are followed.
pub const MAX_TEXT: usize = 4 << 20;

/// One step into a document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Into a mapping.
    Key(String),
    /// Into a sequence.
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}
impl From<&String> for Step {
    fn from(key: &String) -> Self {
        Self::Key(key.clone())
    }
}
impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// The way to a value, shown as `spec.rollout.waves[1]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(pub Vec<Step>);

impl Path {
    /// This path and one more step.
    pub fn with(&self, step: impl Into<Step>) -> Self {
        let mut steps = self.0.clone();
        steps.push(step.into());
        Self(steps)
    }
    /// The path without its last step.
    pub fn parent(&self) -> Self {
        Self(self.0[..self.0.len().saturating_sub(1)].to_vec())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                // A key with a dot would read as two steps.
                Step::Key(key) if key.contains(['.', '[', ' ']) => write!(f, "[\"{key}\"]")?,
                Step::Key(key) if i == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

/// Builds a [`Path`] from keys and indexes.
macro_rules! at {
    ($($step:expr),* $(,)?) => { $crate::desired::yaml::Path(vec![$($crate::desired::yaml::Step::from($step)),*]) };
}
pub(crate) use at;

/// One document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Its text, the `---` line included.
    pub text: &'a str,
    /// Line of the file, from 0, on which it begins.
    pub line: usize,
}

/// Splits a file into its documents, so that a syntax error in one never hides the others. A `---`
/// in the first column is a marker wherever it stands, in block scalars too (YAML 1.2, rule
/// c-forbidden). Documents without content are left out.
pub fn split(text: &str) -> Vec<Chunk<'_>> {
    let (mut chunks, mut start, mut start_line, mut offset) = (Vec::new(), 0, 0, 0);
    let marks = |line: &str, mark: &str| {
        line.strip_prefix(mark).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if marks(line, "---") {
            chunks.push(Chunk { text: &text[start..offset], line: start_line });
            (start, start_line) = (offset, number);
        } else if marks(line, "...") {
            chunks.push(Chunk { text: &text[start..offset], line: start_line });
            (start, start_line) = (offset + line.len(), number + 1);
        }
        offset += line.len();
    }
    chunks.push(Chunk { text: &text[start..], line: start_line });
    chunks.retain(|chunk| {
        let content = |line: &str| {
            let line = line.strip_prefix("---").unwrap_or(line).trim();
            !line.is_empty() && !line.starts_with(['#', '%'])
        };
        chunk.text.lines().any(content)
    });
    chunks
}

/// Why a document is not YAML that is read here, and where (line and column from 0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What is wrong.
    pub message: String,
    /// Line and column within the chunk.
    pub at: Option<(usize, usize)>,
}

/// Reads one document. Keys are text and unique; tags are refused; aliases are followed within
/// [`MAX_VALUES`] and [`MAX_TEXT`].
pub fn read(text: &str) -> Result<Value, Refused> {
    let budget = Budget { values: Cell::new(MAX_VALUES), text: Cell::new(MAX_TEXT) };
    Tree(&budget).deserialize(serde_yaml::Deserializer::from_str(text)).map_err(|error| {
        let at = place(&error);
        Refused { message: plain(&error.to_string()), at }
    })
}

/// Where the value at `path` stands, or its key: line and column from 0. Where there is no such
/// path, the innermost value on the way.
pub fn locate(text: &str, path: &Path, key: bool) -> Option<(usize, usize)> {
    let seed = Locate { path: &path.0, key };
    seed.deserialize(serde_yaml::Deserializer::from_str(text)).err().and_then(|error| place(&error))
}

fn place(error: &serde_yaml::Error) -> Option<(usize, usize)> {
    error.location().map(|at| (at.line().saturating_sub(1), at.column().saturating_sub(1)))
}

/// The parser's message without its position and path, which are shown in their own way.
fn plain(message: &str) -> String {
    let message = message.split(" at line ").next().unwrap_or(message);
    match message {
        "repetition limit exceeded" => "aliases expand without end; write the values out".to_owned(),
        "recursion limit exceeded" => "nested deeper than 128 levels".to_owned(),
        // `metadata.x: text`: the reader's own messages never hold a colon before a blank.
        _ => message.rsplit_once("\u{1}").map_or(message, |(_, own)| own).to_owned(),
    }
}

/// A message of ours, recognisable behind the path that the parser puts in front of it.
fn refuse<E: Error>(message: impl fmt::Display) -> E {
    E::custom(format_args!("\u{1}{message}"))
}

struct Budget {
    values: Cell<usize>,
    text: Cell<usize>,
}

impl Budget {
    fn take<E: Error>(&self, text: usize) -> Result<(), E> {
        match (self.values.get().checked_sub(1), self.text.get().checked_sub(text)) {
            (Some(values), Some(text)) => {
                self.values.set(values);
                self.text.set(text);
                Ok(())
            }
            (None, _) => Err(refuse(format_args!("the document holds more than {MAX_VALUES} values"))),
            _ => Err(refuse(format_args!("the document holds more than {} MiB of text", MAX_TEXT >> 20))),
        }
    }
}

#[derive(Clone, Copy)]
struct Tree<'b>(&'b Budget);

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without a tag")
    }
    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.0.take(0).map(|()| Value::Null)
    }
    fn visit_bool<E: Error>(self, v: bool) -> Result<Value, E> {
        self.0.take(0).map(|()| v.into())
    }
    fn visit_i64<E: Error>(self, v: i64) -> Result<Value, E> {
        self.0.take(0).map(|()| v.into())
    }
    fn visit_u64<E: Error>(self, v: u64) -> Result<Value, E> {
        self.0.take(0).map(|()| v.into())
    }
    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        self.0.take(0)?;
        Number::from_f64(v).map(Value::Number).ok_or_else(|| refuse("not a finite number"))
    }
    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        self.0.take(v.len()).map(|()| v.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        self.0.take(0)?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.0.take(0)?;
        let mut fields = Map::new();
        while let Some(key) = map.next_key_seed(NewKey { seen: &fields, budget: self.0 })? {
            let value = map.next_value_seed(self)?;
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

/// A key that the mapping does not hold yet.
struct NewKey<'a> {
    seen: &'a Map<String, Value>,
    budget: &'a Budget,
}

impl<'de> DeserializeSeed<'de> for NewKey<'_> {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<String, D::Error> {
        d.deserialize_any(self)
    }
}

impl Visitor<'_> for NewKey<'_> {
    type Value = String;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key that is text (put it in quotes)")
    }
    fn visit_str<E: Error>(self, key: &str) -> Result<String, E> {
        self.budget.take(key.len())?;
        match self.seen.contains_key(key) {
            true => Err(refuse(format_args!("duplicate key `{key}`"))),
            false => Ok(key.to_owned()),
        }
    }
}

/// Refuses exactly the value at `path` (or its key), so that the parser says where it stands.
#[derive(Clone, Copy)]
struct Locate<'a> {
    path: &'a [Step],
    key: bool,
}

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        match self.path {
            [] => d.deserialize_any(Nothing),
            _ => d.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the way to a value")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (Some(Step::Key(wanted)), rest) = (self.path.first(), &self.path[1..]) else {
            return Err(refuse("not here"));
        };
        let refuse_key = self.key && rest.is_empty();
        while let Some(hit) = map.next_key_seed(Wanted { wanted, refuse_key })? {
            match hit {
                true => map.next_value_seed(Locate { path: rest, key: self.key })?,
                false => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Err(refuse("not here"))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let (Some(Step::Index(wanted)), rest) = (self.path.first(), &self.path[1..]) else {
            return Err(refuse("not here"));
        };
        for _ in 0..*wanted {
            if seq.next_element::<IgnoredAny>()?.is_none() {
                return Err(refuse("not here"));
            }
        }
        seq.next_element_seed(Locate { path: rest, key: self.key })?;
        Err(refuse("not here"))
    }
}

/// Accepts no value at all.
struct Nothing;

impl Visitor<'_> for Nothing {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing")
    }
}

/// Tells whether a key is the wanted one.
struct Wanted<'a> {
    wanted: &'a str,
    refuse_key: bool,
}

impl<'de> DeserializeSeed<'de> for Wanted<'_> {
    type Value = bool;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<bool, D::Error> {
        d.deserialize_any(self)
    }
}

impl Visitor<'_> for Wanted<'_> {
    type Value = bool;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        match (key == self.wanted, self.refuse_key) {
            (true, true) => Err(refuse("here")),
            (hit, _) => Ok(hit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# head\na:\n  b:\n    - x: 1\n    - {y: 2, \"z\": 3}\nc: |\n  text\n";

    #[test]
    fn every_path_has_its_line_and_column() {
        assert_eq!(locate(TEXT, &at!["a"], true), Some((1, 0)));
        assert_eq!(locate(TEXT, &at!["a", "b", 0], false), Some((3, 6)));
        assert_eq!(locate(TEXT, &at!["a", "b", 1, "z"], true), Some((4, 13)));
        assert_eq!(locate(TEXT, &at!["a", "b", 1, "z"], false), Some((4, 18)));
        assert_eq!(locate(TEXT, &at!["c"], false), Some((5, 3)));
        assert_eq!(locate(TEXT, &at!["a", "b", 1, "absent"], true), Some((4, 6)), "the mapping that lacks it");
    }

    #[test]
    fn documents_are_split_where_yaml_says() {
        let chunks = split("# only a comment\n---\na: 1\n--- # two\nb: |\n  --- not a marker\n...\n---\n\n");
        assert_eq!(chunks.iter().map(|c| c.line).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(read(chunks[1].text).unwrap()["b"], "--- not a marker\n");
    }

    #[test]
    fn duplicate_keys_tags_and_bombs_are_refused_where_they_stand() {
        let refused = read("a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!((refused.message.as_str(), refused.at), ("duplicate key `a`", Some((2, 0))));
        assert!(read("a: !!binary x\nb: !mine y\n").is_err());
        assert!(read("1: x\n").unwrap_err().message.contains("put it in quotes"));
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..12 {
            bomb += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 9].join(","));
        }
        let refused = read(&bomb).unwrap_err();
        assert!(refused.message.contains("aliases") || refused.message.contains("values"), "{refused:?}");
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), vec!["*a"; 200].join(","));
        assert!(read(&long).unwrap_err().message.contains("MiB of text"));
        assert!(read(&"[".repeat(10_000)).is_err());
    }
}
