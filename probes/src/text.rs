//! A record with packed text in the making.

use aya_ebpf::{
    helpers::generated::{bpf_probe_read_kernel_str, bpf_probe_read_user, bpf_probe_read_user_str},
    macros::map,
    maps::PerCpuArray,
};
use tasuki_probe_abi::{EXEC_ARGUMENTS, EXEC_ENVIRONMENT, EXEC_TEXT, ExecRecord};

/// The record and its text. Tracepoints run with preemption off, so one per CPU is enough.
#[repr(C)]
pub struct Scratch {
    /// Fixed part.
    pub record: ExecRecord,
    /// Beyond the largest masked cursor there is room for the longest single text.
    text: [u8; EXEC_TEXT + EXEC_ARGUMENTS],
    /// Bytes of text so far. Here and not in a register, so that the verifier knows nothing of it
    /// but the mask and need not follow every loop with every possible value.
    cursor: u64,
}

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// The largest cursor.
const MASK: usize = EXEC_TEXT - 1;

/// Writes text behind the record.
pub struct Writer(*mut Scratch);

impl Writer {
    /// Begins a record on this CPU.
    #[inline(always)]
    pub fn begin() -> Option<Self> {
        let writer = Self(SCRATCH.get_ptr_mut(0)?);
        writer.set_cursor(0);
        Some(writer)
    }

    /// The fixed part.
    #[inline(always)]
    pub fn record(&mut self) -> &mut ExecRecord {
        // SAFETY: the map gave the pointer, and preemption is off.
        unsafe { &mut (*self.0).record }
    }

    /// Start of what is sent.
    #[inline(always)]
    pub fn start(&self) -> *mut Scratch {
        self.0
    }

    /// Bytes of text so far.
    #[inline(always)]
    pub fn cursor(&self) -> usize {
        // SAFETY: as in `record`.
        unsafe { (&raw const (*self.0).cursor).read_volatile() as usize & MASK }
    }

    #[inline(always)]
    fn set_cursor(&self, cursor: usize) {
        // SAFETY: as in `record`.
        unsafe { (&raw mut (*self.0).cursor).write_volatile(cursor as u64) };
    }

    #[inline(always)]
    fn place(&self, cursor: usize) -> *mut u8 {
        // SAFETY: the masked cursor lies inside the text.
        unsafe { (&raw mut (*self.0).text).cast::<u8>().add(cursor & MASK) }
    }

    /// Appends kernel text; gives its length with the end mark, or 0.
    #[inline(always)]
    pub fn kernel_text(&self, most: u32, from: u64) -> usize {
        let cursor = self.cursor();
        // SAFETY: the text reaches beyond the largest masked cursor plus the longest text.
        let length = unsafe { bpf_probe_read_kernel_str(self.place(cursor).cast(), most, from as *const _) };
        if length <= 0 {
            return 0;
        }
        self.set_cursor(cursor + length as usize);
        length as usize
    }

    /// Appends user memory, at most `EXEC_ARGUMENTS` bytes; gives whether it could be read.
    #[inline(always)]
    pub fn user_bytes(&self, length: u32, from: u64) -> bool {
        if length as usize > EXEC_ARGUMENTS {
            return false;
        }
        let cursor = self.cursor();
        // SAFETY: as in `kernel_text`; the helper checks the user address.
        let result = unsafe { bpf_probe_read_user(self.place(cursor).cast(), length, from as *const _) };
        if result == 0 {
            self.set_cursor(cursor + length as usize);
        }
        result == 0
    }

    /// Looks at one environment variable, and appends it if it is one of the dynamic loader's and
    /// there is room. Gives its length, or 0 where it cannot be read.
    #[inline(always)]
    pub fn loader_variable(&self, from: u64, room: usize) -> u64 {
        let cursor = self.cursor();
        let place = self.place(cursor);
        // Longer than any sane loader variable, so that the step to the next one is right for the rest too.
        // SAFETY: as in `user_bytes`.
        let length = unsafe { bpf_probe_read_user_str(place.cast(), EXEC_ARGUMENTS as u32, from as *const _) };
        if length <= 0 {
            return 0;
        }
        // SAFETY: three bytes inside the text.
        let front = unsafe { [*place, *place.add(1), *place.add(2)] };
        if front == *b"LD_" {
            let kept = if length as usize > EXEC_ENVIRONMENT { EXEC_ENVIRONMENT } else { length as usize };
            if kept <= room {
                self.set_cursor(cursor + kept);
            }
        }
        length as u64
    }
}
