//! PMIx, as far as a server needs it: types, constants and one safe function per call. The only file (with
//! [`super::upcalls_ffi`], what the library calls) where PMIx needs `unsafe`.
//!
//! Written by hand from `pmix_common.h` and `pmix_server.h`; layouts are the same in OpenPMIx 4.2, 5.0, 6.1 (compared by
//! compiling against their headers). Only `pmix_server_module_t` grows, by appending: 224 bytes (4.2), 232 (5.0), 256
//! (6.1). The library copies *its* size of it, so ours is 512 bytes, zero behind what we know.
#![allow(unsafe_code)]

use super::info::Infos;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::{offset_of, size_of};
use std::os::fd::{BorrowedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// `pmix_status_t`.
pub(super) type Status = c_int;

pub(super) const SUCCESS: Status = 0;
pub(super) const ERROR: Status = -1;
pub(super) const ERR_NOT_FOUND: Status = -46;
/// Returned by an upcall: done, the callback will not be called.
pub(super) const OPERATION_SUCCEEDED: Status = -157;

pub(super) const RANK_WILDCARD: u32 = u32::MAX - 1;

/// `pmix_data_type_t` values that we use.
pub(super) mod data_type {
    pub(crate) const BOOL: u16 = 1;
    pub(crate) const STRING: u16 = 3;
    pub(crate) const SIZE: u16 = 4;
    pub(crate) const UINT16: u16 = 13;
    pub(crate) const UINT32: u16 = 14;
    pub(crate) const PROC: u16 = 22;
    pub(crate) const INFO: u16 = 24;
    pub(crate) const BYTE_OBJECT: u16 = 27;
    pub(crate) const DATA_ARRAY: u16 = 39;
    pub(crate) const PROC_RANK: u16 = 40;
    pub(crate) const REGEX: u16 = 49;
}

/// `pmix_proc_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Proc {
    pub(super) nspace: [c_char; 256],
    pub(super) rank: u32,
}

/// `pmix_byte_object_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ByteObject {
    pub(super) bytes: *const c_char,
    pub(super) size: usize,
}

/// `pmix_data_array_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct DataArray {
    pub(super) kind: u16,
    pub(super) size: usize,
    pub(super) array: *const c_void,
}

/// The union in `pmix_value_t`; its longest members are 24 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) union Data {
    pub(super) flag: bool,
    pub(super) uint16: u16,
    pub(super) uint32: u32,
    pub(super) size: usize,
    pub(super) string: *const c_char,
    pub(super) bytes: ByteObject,
    pub(super) array: *const DataArray,
    pub(super) longest: [u64; 3],
}

/// `pmix_value_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Value {
    pub(super) kind: u16,
    pub(super) data: Data,
}

/// `pmix_info_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Info {
    pub(super) key: [c_char; 512],
    pub(super) flags: u32,
    pub(super) value: Value,
}

const _: () = {
    assert!(size_of::<Proc>() == 260);
    assert!(size_of::<ByteObject>() == 16);
    assert!(size_of::<DataArray>() == 24);
    assert!(offset_of!(DataArray, size) == 8 && offset_of!(DataArray, array) == 16);
    assert!(size_of::<Value>() == 32 && offset_of!(Value, data) == 8);
    assert!(size_of::<Info>() == 552);
    assert!(offset_of!(Info, flags) == 512 && offset_of!(Info, value) == 520);
    assert!(size_of::<Module>() == 512);
    assert!(offset_of!(Module, fence_nb) == 24 && offset_of!(Module, log) == 136);
    assert!(offset_of!(Module, group) == 200 && offset_of!(Module, client_connected2) == 216);
};

pub(super) type OpCallback = unsafe extern "C" fn(Status, *mut c_void);
pub(super) type Release = unsafe extern "C" fn(*mut c_void);
pub(super) type ModexCallback =
    unsafe extern "C" fn(Status, *const c_char, usize, *mut c_void, Option<Release>, *mut c_void);
pub(super) type InfoCallback =
    unsafe extern "C" fn(Status, *const Info, usize, *mut c_void, Option<Release>, *mut c_void);
pub(super) type DmodexResponse = unsafe extern "C" fn(Status, *const c_char, usize, *mut c_void);

type ClientCall = unsafe extern "C" fn(*const Proc, *mut c_void, Option<OpCallback>, *mut c_void) -> Status;
type ClientInfoCall =
    unsafe extern "C" fn(*const Proc, *mut c_void, *const Info, usize, Option<OpCallback>, *mut c_void) -> Status;
type AbortCall = unsafe extern "C" fn(
    *const Proc,
    *mut c_void,
    c_int,
    *const c_char,
    *const Proc,
    usize,
    Option<OpCallback>,
    *mut c_void,
) -> Status;
type FenceCall = unsafe extern "C" fn(
    *const Proc,
    usize,
    *const Info,
    usize,
    *const c_char,
    usize,
    Option<ModexCallback>,
    *mut c_void,
) -> Status;
type ModexCall = unsafe extern "C" fn(*const Proc, *const Info, usize, Option<ModexCallback>, *mut c_void) -> Status;
type EventsCall =
    unsafe extern "C" fn(*const Status, usize, *const Info, usize, Option<OpCallback>, *mut c_void) -> Status;
type NoEventsCall = unsafe extern "C" fn(*const Status, usize, Option<OpCallback>, *mut c_void) -> Status;
type NotifyCall =
    unsafe extern "C" fn(Status, *const Proc, u8, *const Info, usize, Option<OpCallback>, *mut c_void) -> Status;
type LogCall =
    unsafe extern "C" fn(*const Proc, *const Info, usize, *const Info, usize, Option<OpCallback>, *mut c_void);
type GroupCall = unsafe extern "C" fn(
    c_int,
    *const c_char,
    *const Proc,
    usize,
    *const Info,
    usize,
    Option<InfoCallback>,
    *mut c_void,
) -> Status;

/// `pmix_server_module_t`: what the library may call. An empty slot means "not supported".
#[repr(C)]
pub(super) struct Module {
    pub(super) client_connected: Option<ClientCall>,
    pub(super) client_finalized: Option<ClientCall>,
    pub(super) abort: Option<AbortCall>,
    pub(super) fence_nb: Option<FenceCall>,
    pub(super) direct_modex: Option<ModexCall>,
    /// publish, lookup, unpublish, spawn, connect, disconnect.
    pub(super) not_offered_5: [usize; 6],
    pub(super) register_events: Option<EventsCall>,
    pub(super) deregister_events: Option<NoEventsCall>,
    /// listener.
    pub(super) not_offered_13: usize,
    pub(super) notify_event: Option<NotifyCall>,
    /// query, tool_connected.
    pub(super) not_offered_15: [usize; 2],
    pub(super) log: Option<LogCall>,
    /// allocate, job_control, monitor, get_credential, validate_credential, iof_pull, push_stdin.
    pub(super) not_offered_18: [usize; 7],
    pub(super) group: Option<GroupCall>,
    /// fabric.
    pub(super) not_offered_26: usize,
    pub(super) client_connected2: Option<ClientInfoCall>,
    /// What later versions have appended, and room for more.
    pub(super) unknown_28: [usize; 36],
}

/// The functions of a loaded library. It stays loaded for the life of the process: its threads run in it.
pub(super) struct Functions {
    get_version: unsafe extern "C" fn() -> *const c_char,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    server_init: unsafe extern "C" fn(*const Module, *const Info, usize) -> Status,
    generate_regex: unsafe extern "C" fn(*const c_char, *mut *mut c_char) -> Status,
    generate_ppn: unsafe extern "C" fn(*const c_char, *mut *mut c_char) -> Status,
    register_nspace:
        unsafe extern "C" fn(*const c_char, c_int, *const Info, usize, Option<OpCallback>, *mut c_void) -> Status,
    register_client:
        unsafe extern "C" fn(*const Proc, u32, u32, *mut c_void, Option<OpCallback>, *mut c_void) -> Status,
    setup_fork: unsafe extern "C" fn(*const Proc, *mut *mut *mut c_char) -> Status,
    dmodex_request: unsafe extern "C" fn(*const Proc, Option<DmodexResponse>, *mut c_void) -> Status,
}

/// Why a library cannot be used.
#[derive(Debug)]
pub(super) enum LoadError {
    /// dlopen(3) says.
    Open(String),
    /// This function is missing.
    Symbol(&'static str),
}

impl Functions {
    /// Loads a library by path, or by name along the loader's path.
    ///
    /// Global, because the library's own plug-ins expect its symbols to be there; now, so that a missing one is told
    /// here and not in the middle of a job.
    pub(super) fn load(name: &Path) -> Result<Self, LoadError> {
        use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
        // SAFETY: runs the library's constructors; libpmix and what it needs (hwloc, libevent) have harmless ones.
        let opened = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) };
        let library = std::mem::ManuallyDrop::new(opened.map_err(|e| LoadError::Open(e.to_string()))?);
        macro_rules! symbol {
            ($name:literal) => {{
                // SAFETY: the field that this is assigned to has the function's type from the header.
                let symbol = unsafe { library.get(concat!($name, "\0").as_bytes()) };
                *symbol.map_err(|_| LoadError::Symbol($name))?
            }};
        }
        Ok(Self {
            get_version: symbol!("PMIx_Get_version"),
            error_string: symbol!("PMIx_Error_string"),
            server_init: symbol!("PMIx_server_init"),
            generate_regex: symbol!("PMIx_generate_regex"),
            generate_ppn: symbol!("PMIx_generate_ppn"),
            register_nspace: symbol!("PMIx_server_register_nspace"),
            register_client: symbol!("PMIx_server_register_client"),
            setup_fork: symbol!("PMIx_server_setup_fork"),
            dmodex_request: symbol!("PMIx_server_dmodex_request"),
        })
    }

    /// `OpenPMIx 4.2.2rc2 (PMIx Standard: 4.2, …)`.
    pub(super) fn version(&self) -> String {
        // SAFETY: takes nothing, may be called before init, and returns a static string.
        let text = unsafe { (self.get_version)() };
        text_of(text)
    }

    /// The library's name for a status.
    pub(super) fn error_string(&self, status: Status) -> String {
        // SAFETY: any number is allowed; the string is static.
        let text = unsafe { (self.error_string)(status) };
        format!("{} ({status})", text_of(text))
    }

    /// Starts the server and its thread. Once per process.
    pub(super) fn server_init(&self, module: &'static Module, infos: &Infos) -> Status {
        // SAFETY: both live long enough (the library copies what it keeps), and have the library's layout.
        unsafe { (self.server_init)(module, infos.as_ptr(), infos.len()) }
    }

    /// The node names (or with `ppn` the ranks) in the library's short form, NUL included. `None` for the binary
    /// `blob:` form, whose length cannot be known from outside.
    pub(super) fn short_form(&self, input: &CStr, ppn: bool) -> Option<Vec<u8>> {
        let function = if ppn { self.generate_ppn } else { self.generate_regex };
        let mut out = std::ptr::null_mut();
        // SAFETY: a string in, a fresh string out.
        let status = unsafe { function(input.as_ptr(), &mut out) };
        if status != SUCCESS || out.is_null() {
            return None;
        }
        // SAFETY: every form begins with a NUL-terminated word.
        let text = unsafe { CStr::from_ptr(out) }.to_bytes_with_nul().to_vec();
        // SAFETY: it was allocated with malloc for the caller.
        unsafe { libc::free(out.cast()) };
        (!text.starts_with(b"blob")).then_some(text)
    }

    /// Describes the job; waits until the library's thread has taken it in.
    pub(super) fn register_nspace(&self, name: &CStr, local: usize, infos: Infos) -> Status {
        let infos = Box::new(infos);
        let (pointer, length, function) = (infos.as_ptr(), infos.len(), self.register_nspace);
        // SAFETY: the infos live until the library has called back, or for ever if it never does (below).
        let status = wait(|callback, data| unsafe {
            function(name.as_ptr(), local as c_int, pointer, length, Some(callback), data)
        });
        if status == NO_ANSWER {
            std::mem::forget(infos);
        }
        status
    }

    /// Announces a rank that will be forked here, with the ids it will have *in its user namespace*: that is what it
    /// claims, and what the library compares.
    pub(super) fn register_client(&self, proc: Proc, uid: u32, gid: u32) -> Status {
        let function = self.register_client;
        // SAFETY: the library copies the proc before it returns.
        wait(|callback, data| unsafe { function(&proc, uid, gid, std::ptr::null_mut(), Some(callback), data) })
    }

    /// What a rank needs in its environment, as `NAME=value`.
    pub(super) fn setup_fork(&self, proc: Proc) -> Result<Vec<String>, Status> {
        // SAFETY: an empty, NULL-terminated array, which the library reallocates.
        let mut environment: *mut *mut c_char = unsafe { libc::calloc(1, size_of::<*mut c_char>()) }.cast();
        // SAFETY: a registered proc and an array allocated with malloc.
        let status = unsafe { (self.setup_fork)(&proc, &mut environment) };
        let mut strings = Vec::new();
        let mut entry = environment;
        while !entry.is_null() {
            // SAFETY: the array ends with a NULL, where we stop.
            let text = unsafe { *entry };
            if text.is_null() {
                break;
            }
            strings.push(text_of(text));
            // SAFETY: each string was allocated with malloc and is ours.
            unsafe { libc::free(text.cast()) };
            // SAFETY: not at the end yet.
            entry = unsafe { entry.add(1) };
        }
        // SAFETY: the array is ours.
        unsafe { libc::free(environment.cast()) };
        if status == SUCCESS { Ok(strings) } else { Err(status) }
    }

    /// Asks for what a local rank has put for others; `callback` gets it, when it is there.
    pub(super) fn dmodex_request(&self, proc: Proc, callback: DmodexResponse, data: *mut c_void) -> Status {
        // SAFETY: the library copies the proc; `callback` owns `data`.
        unsafe { (self.dmodex_request)(&proc, Some(callback), data) }
    }
}

/// Our own status for "the library's thread did not call back".
pub(super) const NO_ANSWER: Status = Status::MIN;
/// Registering takes milliseconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Answer {
    status: Mutex<Option<Status>>,
    arrived: Condvar,
}

/// Calls a function that answers through a callback on another thread, and waits for it.
fn wait(call: impl FnOnce(OpCallback, *mut c_void) -> Status) -> Status {
    let answer = Arc::new(Answer::default());
    let theirs = Arc::into_raw(answer.clone());
    let status = call(answered, theirs.cast_mut().cast());
    if status != SUCCESS {
        // SAFETY: with any other status there is no call back, and the reference is still ours.
        drop(unsafe { Arc::from_raw(theirs) });
        return if status == OPERATION_SUCCEEDED { SUCCESS } else { status };
    }
    let locked = answer.status.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = answer.arrived.wait_timeout_while(locked, ANSWER_WITHIN, |status| status.is_none());
    let (locked, _) = waited.unwrap_or_else(PoisonError::into_inner);
    locked.unwrap_or(NO_ANSWER)
}

unsafe extern "C" fn answered(status: Status, data: *mut c_void) {
    // SAFETY: the reference that `wait` gave away, once.
    let answer = unsafe { Arc::from_raw(data.cast_const().cast::<Answer>()) };
    *answer.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    answer.arrived.notify_one();
}

/// A C string of the library as text; empty for NULL.
pub(super) fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not NULL, hence NUL-terminated, as all strings of this API.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A copy in memory that C may free.
pub(super) fn malloced(bytes: &[u8]) -> *const c_char {
    // SAFETY: any length is allowed.
    let copy = unsafe { libc::malloc(bytes.len().max(1)) };
    if !copy.is_null() {
        // SAFETY: fresh memory of this length.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy.cast(), bytes.len()) };
    }
    copy.cast_const().cast()
}

pub(super) use libc::{TCP_NODELAY, TCP_QUICKACK};

/// Switches an option of TCP on, on a socket of the library; anything else is left as it is.
pub(super) fn set_tcp_option(fd: RawFd, option: c_int) {
    let on: c_int = 1;
    let length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: reads an int; a number that is no TCP socket is refused by the kernel.
    unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, option, (&raw const on).cast(), length) };
}

/// Watches a socket of the library for data that arrive.
///
/// For room to write, too: epoll looks again before it tells, and the library's thread has read the data by then. What
/// it still sees is that there is room, as always, and edge-triggered that is told once per arrival.
pub(super) fn watch(epoll: &Epoll, fd: RawFd) -> nix::Result<()> {
    // SAFETY: used for one system call, which refuses a number that has been closed meanwhile.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let what = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
    epoll.add(socket, EpollEvent::new(what, fd as u64))
}

/// Sets or removes a variable of this process, for libpmix to read.
///
/// Call it while the process has one thread, or only such as never look at the environment.
pub(super) fn set_variable(name: &str, value: Option<&str>) {
    match value {
        // SAFETY: no other thread reads the environment, says the caller.
        Some(value) => unsafe { std::env::set_var(name, value) },
        // SAFETY: as above.
        None => unsafe { std::env::remove_var(name) },
    }
}
