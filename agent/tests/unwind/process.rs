//! Stops programs that the test itself started and reads their registers, memory and mappings.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::BufRead;
use std::process::{Child, Command, Stdio};

const PAGE: u64 = 4096;

/// A started and traced program, killed on drop. Of its threads the first is traced.
pub(crate) struct Process {
    child: Child,
    /// A signal that stopped the thread and still has to be delivered.
    signal: i32,
}

impl Process {
    /// Starts a program and waits until it writes its first line.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(!line.is_empty(), "the program says that it is ready");
        let process = Self { child, signal: 0 };
        process.ptrace(libc::PTRACE_SEIZE, 0, 0);
        process
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn ptrace(&self, request: libc::c_uint, address: usize, data: usize) {
        // SAFETY: the requests used here take numbers, or a pointer to a live register buffer.
        let result = unsafe { libc::ptrace(request, self.pid(), address, data) };
        assert_eq!(
            result,
            0,
            "ptrace {request:#x}: {}",
            std::io::Error::last_os_error()
        );
    }

    /// Waits until the thread has stopped.
    fn wait(&mut self) {
        let mut status = 0;
        // SAFETY: `status` lives across the call.
        let pid = unsafe { libc::waitpid(self.pid(), &mut status, libc::__WALL) };
        assert!(
            pid == self.pid() && libc::WIFSTOPPED(status),
            "the program ended early: {status:#x}"
        );
        let signal = libc::WSTOPSIG(status);
        self.signal = if status >> 16 != 0 || signal == libc::SIGTRAP {
            0
        } else {
            signal
        };
    }

    /// Lets a stopped program run on.
    pub(crate) fn resume(&mut self) {
        self.ptrace(libc::PTRACE_CONT, 0, self.signal as usize);
        self.signal = 0;
    }

    /// Stops a running program.
    pub(crate) fn interrupt(&mut self) {
        self.ptrace(libc::PTRACE_INTERRUPT, 0, 0);
        self.wait();
    }

    /// Runs one instruction of a stopped program.
    pub(crate) fn single_step(&mut self) {
        self.ptrace(libc::PTRACE_SINGLESTEP, 0, self.signal as usize);
        self.signal = 0;
        self.wait();
    }

    /// The registers of a stopped program.
    pub(crate) fn registers(&self) -> libc::user_regs_struct {
        // SAFETY: the structure is made of integers.
        let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        self.ptrace(libc::PTRACE_GETREGS, 0, &raw mut regs as usize);
        regs
    }

    /// A view of a stopped program's memory.
    pub(crate) fn memory(&self) -> Pages {
        Pages {
            pid: self.pid(),
            pages: RefCell::default(),
        }
    }

    /// The executable mappings of files and of the vDSO, with the address that each file's lowest
    /// mapping has.
    pub(crate) fn mappings(&self) -> Vec<Mapping> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap();
        let mut lowest = HashMap::new();
        let mut mappings = Vec::new();
        for line in maps.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (start, end) = fields.next().unwrap().split_once('-').unwrap();
            let [start, end] = [start, end].map(|number| u64::from_str_radix(number, 16).unwrap());
            let exec = fields.next().unwrap().contains('x');
            let offset = u64::from_str_radix(fields.next().unwrap(), 16).unwrap();
            let Some(path) = fields.nth(2).map(str::to_owned) else {
                continue;
            };
            let lowest = *lowest.entry(path.clone()).or_insert(start);
            if exec && (path.starts_with('/') || path == "[vdso]") {
                mappings.push(Mapping {
                    start,
                    end,
                    offset,
                    path,
                    lowest,
                });
            }
        }
        mappings
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line of `/proc/PID/maps`.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) offset: u64,
    pub(crate) path: String,
    /// Where the file's lowest mapping starts.
    pub(crate) lowest: u64,
}

/// Memory of a stopped program, read page by page.
pub(crate) struct Pages {
    pid: i32,
    pages: RefCell<HashMap<u64, Option<Vec<u8>>>>,
}

impl Pages {
    pub(crate) fn read(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0u8; len];
        let local = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: len,
        };
        let remote = libc::iovec {
            iov_base: address as *mut _,
            iov_len: len,
        };
        // SAFETY: `local` describes `bytes`; the kernel checks the remote range.
        let got = unsafe { libc::process_vm_readv(self.pid, &local, 1, &remote, 1, 0) };
        (got == len as isize).then_some(bytes)
    }

    pub(crate) fn word(&self, address: u64) -> Option<u64> {
        let (page, inside) = (address & !(PAGE - 1), (address % PAGE) as usize);
        if inside > PAGE as usize - 8 {
            return Some(u64::from_le_bytes(self.read(address, 8)?.try_into().ok()?));
        }
        let mut pages = self.pages.borrow_mut();
        let bytes = pages
            .entry(page)
            .or_insert_with(|| self.read(page, PAGE as usize))
            .as_ref()?;
        Some(u64::from_le_bytes(
            bytes[inside..inside + 8].try_into().ok()?,
        ))
    }
}
