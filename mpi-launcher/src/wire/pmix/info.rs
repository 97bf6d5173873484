//! `pmix_info_t` arrays, with the memory that they point to.

use super::ffi::{ByteObject, Data, DataArray, Info, Proc, Value, data_type};
use std::ffi::{CString, c_char, c_void};

/// Keys (`pmix_common.h`) that we register or read.
pub(super) mod key {
    macro_rules! keys {
        ($($name:ident = $text:literal;)*) => { $(pub(crate) const $name: &str = $text;)* };
    }
    keys! {
        SERVER_NSPACE = "pmix.srv.nspace"; SERVER_RANK = "pmix.srv.rank";
        SERVER_TMPDIR = "pmix.srvr.tmpdir"; SYSTEM_TMPDIR = "pmix.sys.tmpdir";
        SHARE_TOPOLOGY = "pmix.srvr.share"; HOSTNAME = "pmix.hname";
        NSPACE = "pmix.nspace"; JOBID = "pmix.jobid"; UNIV_SIZE = "pmix.univ.size"; JOB_SIZE = "pmix.job.size";
        MAX_PROCS = "pmix.max.size"; JOB_NUM_APPS = "pmix.job.napps"; APP_SIZE = "pmix.app.size";
        APPLDR = "pmix.aldr"; NUM_NODES = "pmix.num.nodes"; SPAWNED = "pmix.spawned";
        NODE_MAP = "pmix.nmap"; PROC_MAP = "pmix.pmap"; NODEID = "pmix.nodeid"; NODE_SIZE = "pmix.node.size";
        LOCAL_SIZE = "pmix.local.size"; LOCAL_PEERS = "pmix.lpeers"; LOCALLDR = "pmix.lldr";
        TMPDIR = "pmix.tmpdir"; NSDIR = "pmix.nsdir"; PROCDIR = "pmix.pdir";
        MAPBY = "pmix.mapby"; RANKBY = "pmix.rankby"; BINDTO = "pmix.bindto";
        PROC_DATA = "pmix.pdata"; APP_INFO_ARRAY = "pmix.app.arr";
        RANK = "pmix.rank"; GLOBAL_RANK = "pmix.grank"; APP_RANK = "pmix.apprank"; APPNUM = "pmix.appnum";
        LOCAL_RANK = "pmix.lrank"; NODE_RANK = "pmix.nrank"; REINCARNATION = "pmix.reinc";
        LOCALITY_STRING = "pmix.locstr"; CPUSET = "pmix.cpuset";
        GROUP_CONTEXT_ID = "pmix.grp.ctxid"; GROUP_MEMBERSHIP = "pmix.grp.mbrs";
        GROUP_ENDPT_DATA = "pmix.grp.endpt"; GROUP_LOCAL_ONLY = "pmix.grp.lcl";
    }
}

/// An array of `pmix_info_t` that owns what its values point to. Heap memory does not move when the array does.
#[derive(Default)]
pub(super) struct Infos {
    infos: Vec<Info>,
    texts: Vec<CString>,
    bytes: Vec<Box<[u8]>>,
    arrays: Vec<Box<[DataArray]>>,
    procs: Vec<Box<[Proc]>>,
    nested: Vec<Infos>,
}

impl Infos {
    /// The array, for the library.
    pub(super) fn as_ptr(&self) -> *const Info {
        self.infos.as_ptr()
    }
    /// Number of infos.
    pub(super) fn len(&self) -> usize {
        self.infos.len()
    }
    /// A truth value.
    pub(super) fn flag(&mut self, key: &str, flag: bool) {
        self.add(key, data_type::BOOL, |data| data.flag = flag);
    }
    /// A small number (`PMIX_LOCAL_RANK`, `PMIX_NODE_RANK`).
    pub(super) fn uint16(&mut self, key: &str, number: u16) {
        self.add(key, data_type::UINT16, |data| data.uint16 = number);
    }
    /// A number.
    pub(super) fn uint32(&mut self, key: &str, number: u32) {
        self.add(key, data_type::UINT32, |data| data.uint32 = number);
    }
    /// A rank.
    pub(super) fn rank(&mut self, key: &str, rank: u32) {
        self.add(key, data_type::PROC_RANK, |data| data.uint32 = rank);
    }
    /// A `size_t`.
    pub(super) fn size(&mut self, key: &str, size: usize) {
        self.add(key, data_type::SIZE, |data| data.size = size);
    }
    /// A string, up to its first NUL.
    pub(super) fn text(&mut self, key: &str, text: &str) {
        let text = c_string(text);
        self.add(key, data_type::STRING, |data| data.string = text.as_ptr());
        self.texts.push(text);
    }
    /// The bytes of a short form (`PMIx_generate_regex`), NUL included.
    pub(super) fn short_form(&mut self, key: &str, bytes: Vec<u8>) {
        let bytes = bytes.into_boxed_slice();
        let object = ByteObject { bytes: bytes.as_ptr().cast(), size: bytes.len() };
        self.add(key, data_type::REGEX, |data| data.bytes = object);
        self.bytes.push(bytes);
    }
    /// A byte object whose bytes the library frees: it takes endpoint data over without saying so.
    pub(super) fn bytes_to_keep(&mut self, key: &str, bytes: &[u8]) {
        let object = ByteObject { bytes: super::ffi::malloced(bytes), size: bytes.len() };
        self.add(key, data_type::BYTE_OBJECT, |data| data.bytes = object);
    }
    /// An array of infos.
    pub(super) fn infos(&mut self, key: &str, infos: Infos) {
        self.array(key, data_type::INFO, infos.len(), infos.as_ptr().cast());
        self.nested.push(infos);
    }
    /// An array of procs.
    pub(super) fn procs(&mut self, key: &str, procs: Vec<Proc>) {
        let procs = procs.into_boxed_slice();
        self.array(key, data_type::PROC, procs.len(), procs.as_ptr().cast());
        self.procs.push(procs);
    }

    fn array(&mut self, key: &str, kind: u16, size: usize, array: *const c_void) {
        let array: Box<[DataArray]> = Box::new([DataArray { kind, size, array }]);
        let pointer = array.as_ptr();
        self.add(key, data_type::DATA_ARRAY, |data| data.array = pointer);
        self.arrays.push(array);
    }

    fn add(&mut self, key: &str, kind: u16, fill: impl FnOnce(&mut Data)) {
        let mut data = Data { longest: [0; 3] };
        fill(&mut data);
        self.infos.push(Info { key: fixed(key), flags: 0, value: Value { kind, data } });
    }
}

/// A proc of a namespace.
pub(super) fn proc(nspace: &str, rank: u32) -> Proc {
    Proc { nspace: fixed(nspace), rank }
}

/// The text up to its first NUL.
pub(super) fn c_string(text: &str) -> CString {
    let bytes: Vec<u8> = text.bytes().take_while(|byte| *byte != 0).collect();
    CString::new(bytes).unwrap_or_default()
}

/// A string in a field of fixed length, zero-filled and always NUL-terminated.
fn fixed<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    for (slot, byte) in field[..N - 1].iter_mut().zip(text.bytes().take_while(|byte| *byte != 0)) {
        *slot = byte as c_char;
    }
    field
}
