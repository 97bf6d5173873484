//! What libpmix calls, in its own thread: each call is copied into a queue for the agent's poll(2) loop.
//!
//! Nothing is answered inside an upcall: calling back from the library's thread dead-locks it (seen with Open MPI 5's
//! MPI_Abort and a synchronous `log`). What needs no answer returns `OPERATION_SUCCEEDED`. Nothing here can panic; if
//! it did, `extern "C"` would abort the process rather than unwind into C.
#![allow(unsafe_code)]

use super::ffi::{
    self, ByteObject, ERROR, Info, InfoCallback, ModexCallback, Module, OPERATION_SUCCEEDED, OpCallback, Proc, SUCCESS,
    Status, data_type, text_of,
};
use super::info::{Infos, key};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::ffi::{c_char, c_int, c_void};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};

/// A process as the library names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) nspace: String,
    pub(super) rank: u32,
}

/// One call of the library.
pub(super) enum Upcall {
    Connected(Name),
    Finalized(Name),
    Abort {
        by: Name,
        status: i32,
        message: String,
    },
    Fence {
        procs: Vec<Name>,
        blob: Vec<u8>,
        answer: BlobAnswer,
    },
    Modex {
        wanted: Name,
        answer: BlobAnswer,
    },
    /// The answer to our own [`serve`].
    Served {
        from: u32,
        id: u64,
        blob: Option<Vec<u8>>,
    },
    Log {
        by: Name,
        text: String,
        answer: OpAnswer,
    },
    Group {
        name: String,
        construct: bool,
        procs: Vec<Name>,
        endpoints: Vec<u8>,
        answer: GroupAnswer,
    },
}

struct Queue {
    sender: Sender<Upcall>,
    wake: Arc<EventFd>,
}

static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Opens the queue; `None` the second time, because the library knows only one server per process.
pub(super) fn open_queue() -> nix::Result<Option<(Receiver<Upcall>, Arc<EventFd>)>> {
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let (sender, receiver) = channel();
    Ok(QUEUE.set(Queue { sender, wake: wake.clone() }).is_ok().then_some((receiver, wake)))
}

fn tell(upcall: Upcall) {
    if let Some(queue) = QUEUE.get() {
        // Fails only when the server was dropped: the job is over.
        let _ = queue.sender.send(upcall);
        let _ = queue.wake.write(1);
    }
}

/// The table for a library without groups that work (4.x: its answers are not what 5.x clients read).
pub(super) static MODULE: Module = module(false);
/// The table for 5.x and later.
pub(super) static MODULE_WITH_GROUPS: Module = module(true);

const fn module(groups: bool) -> Module {
    Module {
        client_connected: Some(client_connected),
        client_finalized: Some(client_finalized),
        abort: Some(abort),
        fence_nb: Some(fence),
        direct_modex: Some(direct_modex),
        not_offered_5: [0; 6],
        register_events: Some(register_events),
        deregister_events: Some(deregister_events),
        not_offered_13: 0,
        notify_event: Some(notify_event),
        not_offered_15: [0; 2],
        log: Some(log),
        not_offered_18: [0; 7],
        group: if groups { Some(group) } else { None },
        not_offered_26: 0,
        client_connected2: Some(client_connected2),
        unknown_28: [0; 36],
    }
}

unsafe extern "C" fn client_connected(
    proc: *const Proc,
    _object: *mut c_void,
    _callback: Option<OpCallback>,
    _data: *mut c_void,
) -> Status {
    tell(Upcall::Connected(name_of(proc)));
    OPERATION_SUCCEEDED
}

unsafe extern "C" fn client_connected2(
    proc: *const Proc,
    _object: *mut c_void,
    _infos: *const Info,
    _count: usize,
    _callback: Option<OpCallback>,
    _data: *mut c_void,
) -> Status {
    tell(Upcall::Connected(name_of(proc)));
    OPERATION_SUCCEEDED
}

unsafe extern "C" fn client_finalized(
    proc: *const Proc,
    _object: *mut c_void,
    _callback: Option<OpCallback>,
    _data: *mut c_void,
) -> Status {
    tell(Upcall::Finalized(name_of(proc)));
    OPERATION_SUCCEEDED
}

unsafe extern "C" fn abort(
    proc: *const Proc,
    _object: *mut c_void,
    status: c_int,
    message: *const c_char,
    _procs: *const Proc,
    _count: usize,
    _callback: Option<OpCallback>,
    _data: *mut c_void,
) -> Status {
    tell(Upcall::Abort { by: name_of(proc), status, message: text_of(message) });
    OPERATION_SUCCEEDED
}

unsafe extern "C" fn fence(
    procs: *const Proc,
    count: usize,
    _infos: *const Info,
    _info_count: usize,
    blob: *const c_char,
    length: usize,
    callback: Option<ModexCallback>,
    data: *mut c_void,
) -> Status {
    let blob = array_of(blob.cast::<u8>(), length);
    tell(Upcall::Fence { procs: names_of(procs, count), blob, answer: BlobAnswer { callback, data } });
    SUCCESS
}

unsafe extern "C" fn direct_modex(
    proc: *const Proc,
    _infos: *const Info,
    _count: usize,
    callback: Option<ModexCallback>,
    data: *mut c_void,
) -> Status {
    tell(Upcall::Modex { wanted: name_of(proc), answer: BlobAnswer { callback, data } });
    SUCCESS
}

/// Events travel between the ranks of a node inside the library; ours are signals and exit codes.
unsafe extern "C" fn register_events(
    _codes: *const Status,
    _count: usize,
    _infos: *const Info,
    _info_count: usize,
    _callback: Option<OpCallback>,
    _data: *mut c_void,
) -> Status {
    OPERATION_SUCCEEDED
}

unsafe extern "C" fn deregister_events(
    _codes: *const Status,
    _count: usize,
    _callback: Option<OpCallback>,
    _data: *mut c_void,
) -> Status {
    OPERATION_SUCCEEDED
}

unsafe extern "C" fn notify_event(
    _code: Status,
    _source: *const Proc,
    _range: u8,
    _infos: *const Info,
    _count: usize,
    _callback: Option<OpCallback>,
    _data: *mut c_void,
) -> Status {
    OPERATION_SUCCEEDED
}

/// Open MPI 5 sends its error texts this way. Keys are `pmix.log.stderr`, `pmix.log.msg` and such.
unsafe extern "C" fn log(
    client: *const Proc,
    infos: *const Info,
    count: usize,
    _directives: *const Info,
    _directive_count: usize,
    callback: Option<OpCallback>,
    data: *mut c_void,
) {
    let text = array_of(infos, count).iter().filter_map(text_value).collect();
    tell(Upcall::Log { by: name_of(client), text, answer: OpAnswer { callback, data } });
}

/// A group is made (0) or dissolved (1).
unsafe extern "C" fn group(
    operation: c_int,
    name: *const c_char,
    procs: *const Proc,
    count: usize,
    directives: *const Info,
    directive_count: usize,
    callback: Option<InfoCallback>,
    data: *mut c_void,
) -> Status {
    let directives = array_of(directives, directive_count);
    if directives.iter().any(|info| key_is(info, key::GROUP_LOCAL_ONLY)) {
        return OPERATION_SUCCEEDED;
    }
    tell(Upcall::Group {
        name: text_of(name),
        construct: operation == 0,
        procs: names_of(procs, count),
        endpoints: directives
            .iter()
            .find(|info| key_is(info, key::GROUP_ENDPT_DATA))
            .map_or_else(Vec::new, bytes_value),
        answer: GroupAnswer { callback, data },
    });
    SUCCESS
}

/// An answer that the library waits for: a status and a blob.
pub(super) struct BlobAnswer {
    callback: Option<ModexCallback>,
    data: *mut c_void,
}

// SAFETY: the library's callbacks may be called, once, from any thread; the data is only handed back to them.
unsafe impl Send for BlobAnswer {}

impl BlobAnswer {
    /// Gives the answer; without a blob, the reason.
    pub(super) fn give(self, blob: Result<Vec<u8>, Status>) {
        let Some(callback) = self.callback else { return };
        let (status, blob) = blob.map_or_else(|status| (status, Vec::new()), |blob| (SUCCESS, blob));
        let (pointer, length) = if blob.is_empty() { (std::ptr::null(), 0) } else { (blob.as_ptr(), blob.len()) };
        let kept = Box::into_raw(Box::new(blob));
        // SAFETY: once per upcall, outside of it; the blob lives until the library calls `release_blob`.
        unsafe { callback(status, pointer.cast(), length, self.data, Some(release_blob), kept.cast()) };
    }
}

unsafe extern "C" fn release_blob(kept: *mut c_void) {
    // SAFETY: what `give` gave away, once.
    drop(unsafe { Box::from_raw(kept.cast::<Vec<u8>>()) });
}

/// An answer that the library waits for: a status.
pub(super) struct OpAnswer {
    callback: Option<OpCallback>,
    data: *mut c_void,
}

// SAFETY: as for BlobAnswer.
unsafe impl Send for OpAnswer {}

impl OpAnswer {
    /// Says that it is done.
    pub(super) fn done(self) {
        let Some(callback) = self.callback else { return };
        // SAFETY: once per upcall, outside of it.
        unsafe { callback(SUCCESS, self.data) };
    }
}

/// An answer that the library waits for: a status and infos.
pub(super) struct GroupAnswer {
    callback: Option<InfoCallback>,
    data: *mut c_void,
}

// SAFETY: as for BlobAnswer.
unsafe impl Send for GroupAnswer {}

impl GroupAnswer {
    /// Gives the answer.
    pub(super) fn give(self, infos: Option<Infos>) {
        let Some(callback) = self.callback else { return };
        let status = if infos.is_some() { SUCCESS } else { ERROR };
        let kept = Box::new(infos.unwrap_or_default());
        let (pointer, length) = (kept.as_ptr(), kept.len());
        let kept = Box::into_raw(kept);
        // SAFETY: once per upcall, outside of it; the infos live until the library calls `release_infos`.
        unsafe { callback(status, pointer, length, self.data, Some(release_infos), kept.cast()) };
    }
}

unsafe extern "C" fn release_infos(kept: *mut c_void) {
    // SAFETY: what `give` gave away, once.
    drop(unsafe { Box::from_raw(kept.cast::<Infos>()) });
}

/// Asks the library for what a local rank has put for others; [`Upcall::Served`] follows with the same numbers.
pub(super) fn serve(functions: &ffi::Functions, proc: Proc, from: u32, id: u64) {
    let asked = Box::into_raw(Box::new((from, id)));
    if functions.dmodex_request(proc, served, asked.cast()) != SUCCESS {
        // SAFETY: with an error there is no call back, and the box is still ours.
        drop(unsafe { Box::from_raw(asked) });
        tell(Upcall::Served { from, id, blob: None });
    }
}

unsafe extern "C" fn served(status: Status, blob: *const c_char, length: usize, asked: *mut c_void) {
    // SAFETY: what `serve` gave away, once.
    let (from, id) = *unsafe { Box::from_raw(asked.cast::<(u32, u64)>()) };
    let blob = (status == SUCCESS).then(|| array_of(blob.cast::<u8>(), length));
    tell(Upcall::Served { from, id, blob });
}

/// A copy of an array of the library.
fn array_of<T: Copy>(array: *const T, count: usize) -> Vec<T> {
    if array.is_null() || count == 0 {
        return Vec::new();
    }
    // SAFETY: the library's arrays have as many elements as it says, for the time of the upcall.
    unsafe { std::slice::from_raw_parts(array, count) }.to_vec()
}

fn names_of(procs: *const Proc, count: usize) -> Vec<Name> {
    array_of(procs, count).iter().map(|proc| Name { nspace: text_of(proc.nspace.as_ptr()), rank: proc.rank }).collect()
}

fn name_of(proc: *const Proc) -> Name {
    names_of(proc, 1).pop().unwrap_or(Name { nspace: String::new(), rank: 0 })
}

fn key_is(info: &Info, key: &str) -> bool {
    text_of(info.key.as_ptr()) == key
}

fn text_value(info: &Info) -> Option<String> {
    if info.value.kind != data_type::STRING {
        return None;
    }
    // SAFETY: the kind says which member of the union it is.
    let text = unsafe { info.value.data.string };
    Some(text_of(text))
}

fn bytes_value(info: &Info) -> Vec<u8> {
    if info.value.kind != data_type::BYTE_OBJECT {
        return Vec::new();
    }
    // SAFETY: the kind says which member of the union it is.
    let ByteObject { bytes, size } = unsafe { info.value.data.bytes };
    array_of(bytes.cast::<u8>(), size)
}
