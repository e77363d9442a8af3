//! What descriptors 0, 1 and 2 are: a shell whose input is a socket is a reverse shell.

use tasuki_probe_abi::{StdioKind, StdioRecord};

use crate::kernel::{offset, pointer, read};
use crate::socket::remote;

const S_IFMT: u32 = 0o170_000;
const S_IFSOCK: u32 = 0o140_000;
const S_IFIFO: u32 = 0o010_000;
const S_IFCHR: u32 = 0o020_000;

/// Major numbers of terminals: virtual consoles and serial lines (4), /dev/tty and the console
/// (5), Unix 98 slaves (136 to 143). Documentation/admin-guide/devices.txt.
const fn is_terminal(device: u32) -> bool {
    let major = device >> 20;
    major == 4 || major == 5 || (major >= 136 && major <= 143)
}

/// The descriptors of a task.
pub struct Table {
    /// Array of `struct file *`.
    files: u64,
    length: u32,
}

/// Finds them.
#[inline(always)]
pub fn of_task(task: u64) -> Table {
    let table = pointer(pointer(task, offset!(task_files)), offset!(files_fdt));
    Table { files: pointer(table, offset!(fdtable_fd)), length: read(table, offset!(fdtable_max)) }
}

/// Looks at one descriptor.
#[inline(always)]
pub fn look(table: &Table, descriptor: u32) -> StdioRecord {
    let mut out = StdioRecord::default();
    if table.length <= descriptor {
        return out;
    }
    let file = pointer(table.files, descriptor * 8);
    if file == 0 {
        return out;
    }
    let inode = pointer(file, offset!(file_inode));
    let mode = u32::from(read::<u16>(inode, offset!(inode_mode)));
    let kind = match mode & S_IFMT {
        S_IFIFO => StdioKind::Pipe,
        S_IFCHR if is_terminal(read(inode, offset!(inode_rdev))) => StdioKind::Terminal,
        S_IFSOCK => {
            let sock = pointer(pointer(file, offset!(file_private_data)), offset!(socket_sk));
            match read::<u16>(sock, offset!(sock_family)) {
                1 => StdioKind::Unix,
                2 | 10 => {
                    out.peer = remote(sock);
                    StdioKind::Socket
                }
                _ => StdioKind::Other,
            }
        }
        _ => StdioKind::Other,
    };
    out.kind = kind as u8;
    out
}
