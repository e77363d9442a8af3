//! What crosses between the eBPF programs and the agent: records, counters, settings and kernel
//! field offsets. Only plain integers in `repr(C)`: both sides are built from this one source, and
//! each record carries the version and its own size so that a mismatch is refused, not misread.
#![no_std]

mod counters;
mod offsets;
mod record;
mod settings;

pub use counters::{Family, FamilyCounters, Filter};
pub use offsets::{ABSENT, Offsets};
pub use record::{
    Actor, Address, DNS_PAYLOAD, DnsRecord, EXEC_ARGUMENTS, EXEC_ENVIRONMENT, EXEC_FILENAME, EXEC_INTERPRETER,
    EXEC_MAX, EXEC_PATH, EXEC_TEXT, ExecRecord, ExitRecord, FileRecord, ForkRecord, Header, Kind, NAME, PATH_DEPTH,
    Record, SocketRecord, StdioKind, StdioRecord, TCP, UDP, VERSION, exec_flags,
};
pub use settings::Settings;
