//! A reader of the kernel's BTF (Documentation/bpf/btf.rst), only for what the probes need: the
//! byte offset of a member, named by a path such as `__sk_common.skc_family`, also through
//! anonymous structs and unions; and the numbers of an enum.

use std::collections::HashMap;

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;
/// Kinds that only point at another type: typedef, volatile, const, restrict, type tag.
const MODIFIERS: [u32; 5] = [8, 9, 10, 11, 18];
/// Nesting of modifiers, members and anonymous members that is followed.
const DEPTH: usize = 16;

/// Why BTF could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the kernel's type information is not readable: {0}")]
pub struct BtfError(&'static str);

/// Parsed type information of the kernel, or of a module on top of it.
#[derive(Debug)]
pub struct Types {
    /// Text of the base and of this part, one after the other.
    text: Vec<u8>,
    data: Vec<u8>,
    /// First id of this part; 1 for the kernel.
    first: u32,
    /// Where each type of this part begins in `data`.
    starts: Vec<u32>,
    structs: HashMap<String, u32>,
    enums: HashMap<String, u32>,
}

#[derive(Clone, Copy)]
struct Type {
    kind: u32,
    flag: bool,
    count: u32,
    size_or_type: u32,
    /// Where what follows the head begins.
    body: usize,
}

fn word(data: &[u8], at: usize) -> Result<u32, BtfError> {
    let bytes = data.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or(BtfError("it ends early"))?;
    Ok(u32::from_ne_bytes(*bytes))
}

impl Types {
    /// Parses the kernel's own (`/sys/kernel/btf/vmlinux`).
    pub fn parse(raw: &[u8]) -> Result<Self, BtfError> {
        Self::parse_part(raw, Vec::new(), 1)
    }

    /// Parses a module's (`/sys/kernel/btf/<module>`), which builds on the kernel's. Only what the
    /// module itself defines can be asked for.
    pub fn parse_module(raw: &[u8], kernel: &Types) -> Result<Self, BtfError> {
        let first = kernel.first + u32::try_from(kernel.starts.len()).map_err(|_| BtfError("too many types"))?;
        Self::parse_part(raw, kernel.text.clone(), first)
    }

    fn parse_part(raw: &[u8], mut text: Vec<u8>, first: u32) -> Result<Self, BtfError> {
        let magic = raw.first_chunk::<2>().ok_or(BtfError("it is empty"))?;
        if u16::from_ne_bytes(*magic) != MAGIC {
            return Err(BtfError("it has another magic number"));
        }
        let header = word(raw, 4)? as usize;
        let (types, types_length) = (word(raw, 8)? as usize, word(raw, 12)? as usize);
        let (names, names_length) = (word(raw, 16)? as usize, word(raw, 20)? as usize);
        let part = |from: usize, length: usize| {
            let start = header.checked_add(from)?;
            raw.get(start..start.checked_add(length)?)
        };
        let data = part(types, types_length).ok_or(BtfError("its type section ends early"))?.to_vec();
        text.extend_from_slice(part(names, names_length).ok_or(BtfError("its text section ends early"))?);
        let mut this = Self { text, data, first, starts: Vec::new(), structs: HashMap::new(), enums: HashMap::new() };
        this.index()?;
        Ok(this)
    }

    fn index(&mut self) -> Result<(), BtfError> {
        let mut at = 0;
        let mut id = self.first;
        while at < self.data.len() {
            let (name, kind, next) = {
                let name = word(&self.data, at)?;
                let head = self.head(at)?;
                (name, head.kind, head.body + body_length(&head)?)
            };
            self.starts.push(u32::try_from(at).map_err(|_| BtfError("it is too large"))?);
            if name != 0 {
                match kind {
                    KIND_STRUCT | KIND_UNION => {
                        let name = self.name(name).to_owned();
                        self.structs.entry(name).or_insert(id);
                    }
                    KIND_ENUM | KIND_ENUM64 => {
                        let name = self.name(name).to_owned();
                        self.enums.entry(name).or_insert(id);
                    }
                    _ => {}
                }
            }
            id = id.checked_add(1).ok_or(BtfError("too many types"))?;
            at = next;
        }
        Ok(())
    }

    fn head(&self, at: usize) -> Result<Type, BtfError> {
        let info = word(&self.data, at + 4)?;
        Ok(Type {
            kind: (info >> 24) & 0x1f,
            flag: info >> 31 == 1,
            count: info & 0xffff,
            size_or_type: word(&self.data, at + 8)?,
            body: at + 12,
        })
    }

    fn by_id(&self, id: u32) -> Option<Type> {
        let at = *self.starts.get(id.checked_sub(self.first)? as usize)?;
        self.head(at as usize).ok()
    }

    fn name(&self, offset: u32) -> &str {
        let rest = self.text.get(offset as usize..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
        std::str::from_utf8(&rest[..end]).unwrap_or_default()
    }

    /// Size of a struct, bytes.
    pub fn size(&self, name: &str) -> Option<u32> {
        Some(self.by_id(*self.structs.get(name)?)?.size_or_type)
    }

    /// Byte offset of a member: `path` names members separated by `.`. `None` where the struct or
    /// the member does not exist, or is a bit field that does not begin at a byte.
    pub fn offset(&self, name: &str, path: &str) -> Option<u32> {
        let mut id = *self.structs.get(name)?;
        let mut bits = 0u32;
        for part in path.split('.') {
            let (offset, next) = self.member(id, part, 0)?;
            bits = bits.checked_add(offset)?;
            id = next;
        }
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// Number of an enum's value.
    pub fn enum_value(&self, name: &str, value: &str) -> Option<u32> {
        let found = self.by_id(*self.enums.get(name)?)?;
        let width = if found.kind == KIND_ENUM64 { 12 } else { 8 };
        (0..found.count as usize).find_map(|index| {
            let at = found.body + index * width;
            let name = word(&self.data, at).ok()?;
            (self.name(name) == value).then(|| word(&self.data, at + 4).ok())?
        })
    }

    /// Offset in bits and type of a member, looked for through anonymous members.
    fn member(&self, id: u32, wanted: &str, depth: usize) -> Option<(u32, u32)> {
        let found = self.resolve(id)?;
        if depth > DEPTH || !matches!(found.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        for index in 0..found.count as usize {
            let at = found.body + index * 12;
            let name = word(&self.data, at).ok()?;
            let inner = word(&self.data, at + 4).ok()?;
            let raw = word(&self.data, at + 8).ok()?;
            // With the flag, the upper byte is a bit field's width.
            let bits = if found.flag { raw & 0x00ff_ffff } else { raw };
            if name == 0 {
                if let Some((below, next)) = self.member(inner, wanted, depth + 1) {
                    return Some((bits.checked_add(below)?, next));
                }
            } else if self.name(name) == wanted {
                return Some((bits, inner));
            }
        }
        None
    }

    fn resolve(&self, mut id: u32) -> Option<Type> {
        for _ in 0..DEPTH {
            let found = self.by_id(id)?;
            if !MODIFIERS.contains(&found.kind) {
                return Some(found);
            }
            id = found.size_or_type;
        }
        None
    }
}

fn body_length(head: &Type) -> Result<usize, BtfError> {
    let count = head.count as usize;
    Ok(match head.kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => count * 12,
        KIND_ENUM | KIND_FUNC_PROTO => count * 8,
        0 | 20.. => return Err(BtfError("it has a kind of type that this agent does not know")),
        // Pointers, forwards, modifiers, functions and floats are a head alone.
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kernel() -> Vec<u8> {
        std::fs::read("/sys/kernel/btf/vmlinux").expect("a kernel with BTF (CONFIG_DEBUG_INFO_BTF)")
    }

    #[test]
    fn finds_members_of_the_running_kernel() {
        let types = Types::parse(&kernel()).unwrap();
        // list_head and upid have kept their shape for decades.
        assert_eq!(types.offset("list_head", "next"), Some(0));
        assert_eq!(types.offset("list_head", "prev"), Some(8));
        assert_eq!(types.offset("upid", "nr"), Some(0));
        assert_eq!(types.offset("upid", "ns"), Some(8));
        assert_eq!(types.size("upid"), Some(16));
        // Through a named member and an anonymous union.
        let family = types.offset("sock", "__sk_common.skc_family").unwrap();
        assert_eq!(types.offset("sock_common", "skc_family"), Some(family));
        assert!(types.offset("sock_common", "skc_daddr").is_some());
        assert_eq!(types.offset("task_struct", "no_such_member"), None);
        assert_eq!(types.offset("no_such_struct", "next"), None);
        assert!(types.enum_value("cgroup_subsys_id", "pids_cgrp_id").is_some());
        assert_eq!(types.enum_value("cgroup_subsys_id", "nothing_cgrp_id"), None);
    }

    #[test]
    fn refuses_what_is_not_btf() {
        assert!(Types::parse(&[]).is_err());
        assert!(Types::parse(b"\x7fELF and so on, long enough for a header").is_err());
        let mut cut = kernel();
        cut.truncate(cut.len() / 2);
        assert!(Types::parse(&cut).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_reader(tail in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut raw = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
            for value in [0u32, 200, 200, 100] {
                raw.extend(value.to_ne_bytes());
            }
            raw.extend(tail);
            if let Ok(types) = Types::parse(&raw) {
                for name in types.structs.keys() {
                    let _ = types.offset(name, "a.b");
                }
            }
        }
    }
}
