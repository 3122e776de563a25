//! Reads the arguments of a failing call: the saved registers still hold them at its exit.

use agent_ebpf::connection::Ends;
use agent_ebpf::failure::{
    ADDRESS_BYTES, CallRecord, PATH_BYTES, PLACE_COMPONENTS, TEXT_BYTES, call, shape,
};
use agent_ebpf::record;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_probe_read_kernel_str, bpf_probe_read_user, bpf_probe_read_user_str,
};

use crate::emit::{self, Wake};
use crate::maps::{CALL, CallScratch, NAME_BYTES, Walk, config};
use crate::process::{read_u32, read_u64};
use crate::sock;
use crate::stack::{mask, mix};

/// "The working directory" (linux/fcntl.h).
const AT_FDCWD: i32 = -100;
/// The file flag that decides whether `EAGAIN` is to be expected (asm-generic/fcntl.h).
const O_NONBLOCK: u32 = 0o4000;
/// The type of a file, and that of a socket (linux/stat.h).
const S_IFMT: u32 = 0o17_0000;
const S_IFSOCK: u32 = 0o14_0000;
/// Most bytes of two paths.
const PATHS_BYTES: u64 = 2 * PATH_BYTES as u64;

/// Fills in the record for the call whose registers are in the scratch, by its shape. The result
/// is the argument's key.
#[inline(always)]
pub fn read(scratch: &mut CallScratch) -> u64 {
    let record = &mut scratch.record;
    record.kind = record::SYSCALL;
    record.flags = 0;
    record.first = 0;
    record.second = 0;
    record.third = 0;
    record.fourth = 0;
    record.inode = 0;
    record.file_flags = 0;
    record.mode = 0;
    record.values = [
        scratch.regs.rdi,
        scratch.regs.rsi,
        scratch.regs.rdx,
        scratch.regs.r10,
        scratch.regs.r8,
        scratch.regs.r9,
    ];
    let shape = record.shape;
    let mut hash = mix(config::hash_seed(), record.row);
    let mut i = 0;
    while i < 6 {
        if shape >> (shape::VALUES + i) & 1 != 0 {
            hash = mix(hash, value(record, i));
        }
        i += 1;
    }
    if let Some(index) = shape::index(shape, shape::PATH) {
        hash = mix(hash, paths(scratch, index));
    } else if let Some(index) = shape::index(shape, shape::ADDRESS)
        && value(&scratch.record, index) != 0
    {
        address(scratch, index);
        // The address tells calls apart, and not the socket: each connection has one of its own.
        hash = mix(hash, nonblocking(scratch));
    } else {
        hash = descriptor(scratch, hash);
    }
    let length = (scratch.record.first + scratch.record.second) as u64;
    let end = mask::<16383>(length);
    // SAFETY: the text is 8 bytes longer than the mask allows.
    let padding = unsafe { scratch.text.as_mut_ptr().add(end).cast::<[u8; 8]>() };
    // SAFETY: as above. Volatile: `hash_text` has its own way to the text.
    unsafe { padding.write_volatile([0; 8]) };
    mix(
        hash,
        mix(hash_text(length.div_ceil(8)), scratch.record.flags as u64),
    )
}

/// One of the call's arguments.
#[inline(always)]
fn value(record: &CallRecord, index: u32) -> u64 {
    // The mask may let through 6 and 7: they lie in the record still.
    const _: () = assert!(size_of::<CallRecord>() >= 24 + 8 * 8);
    // SAFETY: inside the record, see above.
    unsafe { *record.values.as_ptr().add(mask::<7>(index as u64)) }
}

/// Reads the paths; the result tells apart directories that they are relative to.
#[inline(always)]
fn paths(scratch: &mut CallScratch, index: u32) -> u64 {
    let shape = scratch.record.shape;
    let mut hash = 0;
    let first = string(scratch, 0, value(&scratch.record, index));
    scratch.record.first = first;
    if first == 0 {
        scratch.record.flags |= call::UNREADABLE;
        hash = value(&scratch.record, index).min(1);
    } else if scratch.text[0] != b'/' {
        scratch.record.flags |= call::RELATIVE;
        hash = place(scratch, shape::index(shape, shape::DIRECTORY));
    }
    let Some(index) = shape::index(shape, shape::PATH2) else {
        return hash;
    };
    let second = string(scratch, first, value(&scratch.record, index));
    scratch.record.second = second;
    if second == 0 {
        scratch.record.flags |= call::UNREADABLE2;
        return hash;
    }
    // SAFETY: the text is longer than the mask allows.
    let start = unsafe { *scratch.text.as_ptr().add(mask::<8191>(first as u64)) };
    if start != b'/' {
        scratch.record.flags |= call::RELATIVE2;
        hash = mix(hash, place(scratch, shape::index(shape, shape::DIRECTORY2)));
    }
    hash
}

/// Appends a string of the process; the result is its length with the final zero, 0 where it
/// cannot be read. A page that is not there ends the reading only if the string goes on in it.
#[inline(always)]
fn string(scratch: &mut CallScratch, at: u32, address: u64) -> u32 {
    let at = mask::<8191>(at as u64);
    // SAFETY: PATH_BYTES fit after whatever the mask lets through; the helper checks the address.
    let to = unsafe { scratch.text.as_mut_ptr().add(at) };
    // SAFETY: as above.
    let length =
        unsafe { bpf_probe_read_user_str(to.cast(), PATH_BYTES as u32, address as *const _) };
    if length == 0 {
        // Kernels before 6.2 say so of an empty string, and write nothing.
        // SAFETY: as above.
        unsafe { to.write_volatile(0) };
        return 1;
    }
    if length < 0 || length > PATH_BYTES as i64 {
        0
    } else {
        length as u32
    }
}

/// Identifies the directory that a relative path starts from.
#[inline(always)]
fn place(scratch: &CallScratch, directory: Option<u32>) -> u64 {
    let fd = match directory {
        Some(index) => value(&scratch.record, index) as i32,
        None => AT_FDCWD,
    };
    let place = if fd == AT_FDCWD {
        // SAFETY: the helper has no preconditions.
        let task = unsafe { bpf_get_current_task() };
        read_u64(
            read_u64(task, config::task_fs()),
            config::fs_pwd() + config::path_dentry(),
        )
    } else {
        file(fd)
    };
    mix(scratch.record.tgid as u64, mix(place, fd as u64))
}

/// Reads a socket address.
#[inline(always)]
fn address(scratch: &mut CallScratch, index: u32) {
    let from = value(&scratch.record, index);
    let mut length = value(&scratch.record, index + 1) as u32 as u64;
    if length > ADDRESS_BYTES as u64 {
        length = ADDRESS_BYTES as u64;
    }
    let length = mask::<255>(length) as u32;
    // SAFETY: the text is longer than the mask allows; the helper checks the address.
    let failed =
        unsafe { bpf_probe_read_user(scratch.text.as_mut_ptr().cast(), length, from as *const _) };
    if failed == 0 && length > 0 {
        scratch.record.first = length;
    } else {
        scratch.record.flags |= call::UNREADABLE;
    }
}

/// Describes the file behind the descriptor, if the call has one, and mixes in what tells it apart.
#[inline(always)]
fn descriptor(scratch: &mut CallScratch, hash: u64) -> u64 {
    let Some(index) = shape::index(scratch.record.shape, shape::FD) else {
        return hash;
    };
    let fd = value(&scratch.record, index) as i32;
    let file = file(fd);
    let hash = mix(hash, mix(scratch.record.tgid as u64, fd as u32 as u64));
    if file == 0 {
        return hash;
    }
    let inode = read_u64(file, config::file_inode());
    scratch.record.flags |= call::OPEN;
    scratch.record.inode = read_u64(inode, config::inode_number());
    scratch.record.mode = read_u32(inode, config::inode_mode()) & 0xffff;
    mix(mix(hash, scratch.record.inode), nonblocking(scratch))
}

/// Puts down the flags of the file behind the descriptor; the result is one of them, 0 where it is
/// not set or the descriptor not open.
#[inline(always)]
fn nonblocking(scratch: &mut CallScratch) -> u64 {
    let Some(index) = shape::index(scratch.record.shape, shape::FD) else {
        return 0;
    };
    let file = file(value(&scratch.record, index) as i32);
    if file != 0 {
        scratch.record.file_flags = read_u32(file, config::file_flags());
    }
    (scratch.record.file_flags & O_NONBLOCK) as u64
}

/// The current task's open file; 0 where the descriptor is not open.
#[inline(always)]
fn file(fd: i32) -> u64 {
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let table = read_u64(read_u64(task, config::task_files()), config::files_fdt());
    if fd as u32 >= read_u32(table, config::fdt_max()) {
        return 0;
    }
    let files = read_u64(table, config::fdt_fd());
    read_u64(files + 8 * fd as u32 as u64, 0)
}

/// Hash of so many words of the text.
///
/// A global function: the verifier checks its loop once by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hash_text(words: u64) -> u64 {
    let Some(scratch) = CALL.get_ptr(0) else {
        return 0;
    };
    let mut hash = words;
    let mut i = 0u64;
    while i < PATHS_BYTES / 8 {
        if i >= words {
            break;
        }
        // SAFETY: the mask keeps the word inside the text, which is a multiple of 8 bytes into a
        // value that is aligned to 8.
        let word = unsafe {
            *(&raw const (*scratch).text)
                .cast::<u64>()
                .add(mask::<1023>(i))
        };
        hash = mix(hash, word);
        i += 1;
    }
    hash
}

/// Sends the record with its texts. The places are looked up only here: once for each argument.
#[inline(always)]
pub fn send(scratch: &mut CallScratch) -> bool {
    let shape = scratch.record.shape;
    scratch.at = (scratch.record.first + scratch.record.second) as u64;
    if scratch.record.flags & call::RELATIVE != 0 {
        let directory = shape::index(shape, shape::DIRECTORY);
        let (length, whole) = directory_path(scratch, directory);
        scratch.record.third = length;
        scratch.record.flags |= if whole { 0 } else { call::DEEP };
    } else if scratch.record.flags & call::OPEN != 0
        && let Some(index) = shape::index(shape, shape::FD)
    {
        let file = file(value(&scratch.record, index) as i32);
        if scratch.record.mode & S_IFMT == S_IFSOCK {
            socket(scratch, file);
        } else {
            let (length, whole) = path(scratch, file + config::file_path() as u64);
            scratch.record.third = length;
            scratch.record.flags |= if whole { 0 } else { call::DEEP };
            scratch.record.flags |= if is_deleted(file) { call::DELETED } else { 0 };
        }
    }
    if scratch.record.flags & call::RELATIVE2 != 0 {
        let directory = shape::index(shape, shape::DIRECTORY2);
        let (length, whole) = directory_path(scratch, directory);
        scratch.record.fourth = length;
        scratch.record.flags |= if whole { 0 } else { call::DEEP2 };
    }
    let length = scratch.at;
    if length > TEXT_BYTES as u64 {
        return false;
    }
    // What a socket is connected to is asked of the process, which may close it.
    let prompt = scratch.record.flags & call::OPEN != 0;
    let wake = if prompt { Wake::Now } else { Wake::WhenFull };
    let size = mask::<16383>(size_of::<CallRecord>() as u64 + length) as u64;
    // SAFETY: the text follows the record and holds more than the mask lets through.
    unsafe { emit::output(&raw const scratch.record, size, wake) }
}

/// Appends the ends of a socket.
#[inline(always)]
fn socket(scratch: &mut CallScratch, file: u64) {
    let socket = read_u64(file, config::file_private_data());
    let ends = sock::ends(read_u64(socket, config::socket_sk()));
    let at = mask::<16383>(scratch.at);
    // SAFETY: the text is longer than the mask allows by more than the ends.
    unsafe {
        let to = scratch.text.as_mut_ptr().add(at);
        to.cast::<Ends>().write_unaligned(ends);
    }
    scratch.at += size_of::<Ends>() as u64;
    scratch.record.third = size_of::<Ends>() as u32;
    scratch.record.flags |= call::SOCKET;
}

/// Whether an open file has no name any more (`d_unlinked`, linux/dcache.h).
#[inline(always)]
fn is_deleted(file: u64) -> bool {
    let dentry = read_u64(file, config::file_path() + config::path_dentry());
    read_u64(dentry, config::dentry_hash()) == 0
        && read_u64(dentry, config::dentry_parent()) != dentry
}

/// Appends the path of the directory that an argument names, or of the working directory.
#[inline(always)]
fn directory_path(scratch: &mut CallScratch, directory: Option<u32>) -> (u32, bool) {
    let fd = match directory {
        Some(index) => value(&scratch.record, index) as i32,
        None => AT_FDCWD,
    };
    if fd == AT_FDCWD {
        // SAFETY: the helper has no preconditions.
        let task = unsafe { bpf_get_current_task() };
        let fs = read_u64(task, config::task_fs());
        return path(scratch, fs + config::fs_pwd() as u64);
    }
    match file(fd) {
        0 => (0, true),
        file => path(scratch, file + config::file_path() as u64),
    }
}

/// Appends a `struct path` as the process sees it; the result is the length, and whether all of it
/// is there.
#[inline(always)]
fn path(scratch: &mut CallScratch, from: u64) -> (u32, bool) {
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let root = read_u64(task, config::task_fs()) + config::fs_root() as u64;
    let walk = Walk {
        root_dentry: read_u64(root, config::path_dentry()),
        root_mount: read_u64(root, config::path_mnt()),
        dentry: read_u64(from, config::path_dentry()),
        mount: read_u64(from, config::path_mnt()),
    };
    let start = scratch.at;
    // SAFETY: fields of the scratch. Volatile: the function below has its own way to them.
    unsafe { (&raw mut scratch.walk).write_volatile(walk) };
    // SAFETY: as above.
    unsafe { (&raw mut scratch.at).write_volatile(start) };
    let mut whole = false;
    let mut i = 0;
    while i < PLACE_COMPONENTS {
        if path_component() == 0 {
            whole = true;
            break;
        }
        i += 1;
    }
    // SAFETY: as above.
    let end = unsafe { (&raw const scratch.at).read_volatile() };
    scratch.at = end;
    ((end - start) as u32, whole)
}

/// Appends the name of the component that the walk is at, and goes to its parent, or from the
/// root of a mount to where it is mounted; 0 at the end (`prepend_path`, fs/d_path.c).
///
/// A global function: the verifier checks it once by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn path_component() -> u32 {
    let Some(scratch) = CALL.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a per-CPU value that only this program uses, and it does not nest.
    let scratch = unsafe { &mut *scratch };
    let Walk {
        dentry,
        mount,
        root_dentry,
        root_mount,
    } = scratch.walk;
    if dentry == root_dentry && mount == root_mount {
        return 0;
    }
    let parent = read_u64(dentry, config::dentry_parent());
    if dentry == parent || dentry == read_u64(mount, config::mnt_root()) {
        let outer = mount.wrapping_sub(config::mount_mnt() as u64);
        let above = read_u64(outer, config::mount_parent());
        if above == outer || above == 0 {
            return 0;
        }
        scratch.walk.dentry = read_u64(outer, config::mount_point());
        scratch.walk.mount = above + config::mount_mnt() as u64;
        return 1;
    }
    let name = read_u64(dentry, config::dentry_name());
    if scratch.at > (TEXT_BYTES - NAME_BYTES) as u64 {
        return 1;
    }
    let at = mask::<16383>(scratch.at);
    // SAFETY: NAME_BYTES fit after whatever the mask lets through; the helper checks the address.
    let length = unsafe {
        let to = scratch.text.as_mut_ptr().add(at);
        bpf_probe_read_kernel_str(to.cast(), NAME_BYTES as u32, name as *const _)
    };
    if length <= 0 {
        return 0;
    }
    scratch.at += length as u64;
    scratch.walk.dentry = parent;
    1
}
