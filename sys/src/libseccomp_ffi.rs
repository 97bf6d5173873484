//! libseccomp, as far as writing a filter needs it, found at run time: a host that never compiles a filter, or has them
//! cached, does not load it.
//!
//! Declared by hand from `seccomp.h` (seccomp_init(3) and its neighbours); the ABI of libseccomp.so.2 is stable since
//! 2.2, and what is newer is asked for by version.

use crate::mount::c_string;
use crate::seccomp::Instruction;
use crate::{Error, Result, fd};
use libloading::Library;
use nix::errno::Errno;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::fmt::Display;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;

/// The name by which the dynamic loader knows it.
pub const NAME: &str = "libseccomp.so.2";

/// A condition on one argument (`struct scmp_arg_cmp`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Which argument, from 0 to 5.
    pub argument: c_uint,
    /// `enum scmp_compare`.
    pub operator: c_int,
    /// What it is compared with; the mask for SCMP_CMP_MASKED_EQ.
    pub value: u64,
    /// What the masked argument must be.
    pub value_two: u64,
}

/// `struct scmp_version`.
#[repr(C)]
struct Version {
    major: c_uint,
    minor: c_uint,
    micro: c_uint,
}

type Context = *mut c_void;

/// A loaded libseccomp.
#[derive(Debug)]
pub struct Libseccomp {
    init: unsafe extern "C" fn(u32) -> Context,
    release: unsafe extern "C" fn(Context),
    arch_add: unsafe extern "C" fn(Context, u32) -> c_int,
    arch_remove: unsafe extern "C" fn(Context, u32) -> c_int,
    arch_native: unsafe extern "C" fn() -> u32,
    attr_set: unsafe extern "C" fn(Context, c_int, u32) -> c_int,
    resolve: unsafe extern "C" fn(*const c_char) -> c_int,
    resolve_arch: unsafe extern "C" fn(u32, *const c_char) -> c_int,
    rule_add: unsafe extern "C" fn(Context, u32, c_int, c_uint, *const Comparison) -> c_int,
    export: unsafe extern "C" fn(Context, c_int) -> c_int,
    version: (u32, u32, u32),
    // Last: the functions above live in it.
    _library: Library,
}

/// `SCMP_FLTATR_CTL_OPTIMIZE`, since 2.5.
const ATTRIBUTE_OPTIMIZE: c_int = 8;
/// A binary tree over the numbers of the calls.
const OPTIMIZE_TREE: u32 = 2;
/// `__NR_SCMP_ERROR`.
const UNKNOWN_CALL: c_int = -1;

fn symbol<T: Copy>(library: &Library, name: &'static str) -> Result<T> {
    // SAFETY: the callers below ask for each function with the type that seccomp.h declares.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|function| *function).map_err(|_| Error::new("find in libseccomp the function", name, Errno::ENOSYS))
}

impl Libseccomp {
    /// Loads it.
    ///
    /// # Errors
    /// ENOENT when the host has none, with the loader's words; ENOSYS when it lacks a function.
    pub fn load() -> Result<Self> {
        // SAFETY: libseccomp has no initialisers beyond its own state.
        let library = unsafe { Library::new(NAME) }
            .map_err(|e| Error::new("load", format_args!("{NAME} [{e}]"), Errno::ENOENT))?;
        let version_of: unsafe extern "C" fn() -> *const Version = symbol(&library, "seccomp_version")?;
        // SAFETY: no arguments; the result is a constant of the library.
        let version = unsafe { version_of() };
        // SAFETY: null is ruled out by as_ref, and the constant lives as long as the library.
        let version = unsafe { version.as_ref() }.map_or((0, 0, 0), |v| (v.major, v.minor, v.micro));
        Ok(Self {
            init: symbol(&library, "seccomp_init")?,
            release: symbol(&library, "seccomp_release")?,
            arch_add: symbol(&library, "seccomp_arch_add")?,
            arch_remove: symbol(&library, "seccomp_arch_remove")?,
            arch_native: symbol(&library, "seccomp_arch_native")?,
            attr_set: symbol(&library, "seccomp_attr_set")?,
            resolve: symbol(&library, "seccomp_syscall_resolve_name")?,
            resolve_arch: symbol(&library, "seccomp_syscall_resolve_name_arch")?,
            rule_add: symbol(&library, "seccomp_rule_add_array")?,
            export: symbol(&library, "seccomp_export_bpf")?,
            version,
            _library: library,
        })
    }

    /// Its version.
    pub fn version(&self) -> (u32, u32, u32) {
        self.version
    }

    /// The architecture of this machine, as `SCMP_ARCH_*`.
    pub fn native(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { (self.arch_native)() }
    }

    /// The number of a call here; negative for one that only other architectures have; `None` where the library does
    /// not know the name.
    pub fn number(&self, name: &str) -> Option<i32> {
        let text = c_string("resolve", name.as_bytes()).ok()?;
        // SAFETY: a NUL-terminated text.
        let number = unsafe { (self.resolve)(text.as_ptr()) };
        (number != UNKNOWN_CALL).then_some(number)
    }

    /// The number of a call on an architecture that has it.
    pub fn number_on(&self, architecture: u32, name: &str) -> Option<u32> {
        let text = c_string("resolve", name.as_bytes()).ok()?;
        // SAFETY: a number and a NUL-terminated text.
        let number = unsafe { (self.resolve_arch)(architecture, text.as_ptr()) };
        u32::try_from(number).ok()
    }

    /// A filter that answers every call with `action` (`SCMP_ACT_*`).
    ///
    /// # Errors
    /// EINVAL for an action that library or kernel do not know.
    pub fn filter(&self, action: u32) -> Result<Filter<'_>> {
        // SAFETY: a number.
        let context = unsafe { (self.init)(action) };
        if context.is_null() {
            return Err(Error::new("begin", format_args!("a seccomp filter with action {action:#x}"), Errno::EINVAL));
        }
        Ok(Filter { library: self, context })
    }
}

/// A filter being written.
#[derive(Debug)]
pub struct Filter<'a> {
    library: &'a Libseccomp,
    context: Context,
}

impl Filter<'_> {
    /// Adds an architecture (`SCMP_ARCH_*`); one that is there is fine.
    ///
    /// # Errors
    /// EINVAL for one that the library does not know, EDOM for one of the other byte order.
    pub fn add_architecture(&self, token: u32, name: impl Display) -> Result<()> {
        // SAFETY: a live context and a number.
        let result = unsafe { (self.library.arch_add)(self.context, token) };
        if result == -libc::EEXIST { Ok(()) } else { said("add to a seccomp filter the architecture", name, result) }
    }

    /// Removes an architecture.
    ///
    /// # Errors
    /// What seccomp_arch_remove(3) says.
    pub fn remove_architecture(&self, token: u32) -> Result<()> {
        // SAFETY: a live context and a number.
        let result = unsafe { (self.library.arch_remove)(self.context, token) };
        said("remove from a seccomp filter the architecture", token, result)
    }

    /// Calls are found by a binary tree instead of one after the other; libraries before 2.5 cannot.
    ///
    /// # Errors
    /// What seccomp_attr_set(3) says.
    pub fn as_tree(&self) -> Result<()> {
        if self.library.version < (2, 5, 0) {
            return Ok(());
        }
        // SAFETY: a live context and numbers.
        let result = unsafe { (self.library.attr_set)(self.context, ATTRIBUTE_OPTIMIZE, OPTIMIZE_TREE) };
        said("optimise", "a seccomp filter", result)
    }

    /// Answers the call with this number (see [`Libseccomp::number`]) with `action` where all conditions hold.
    ///
    /// # Errors
    /// What seccomp_rule_add(3) says.
    pub fn rule(&self, action: u32, number: i32, conditions: &[Comparison], name: impl Display) -> Result<()> {
        let count = conditions.len() as c_uint;
        // SAFETY: a live context, numbers, and `count` conditions that the library copies.
        let result = unsafe { (self.library.rule_add)(self.context, action, number, count, conditions.as_ptr()) };
        said("add to a seccomp filter a rule for", name, result)
    }

    /// The instructions.
    ///
    /// # Errors
    /// What seccomp_export_bpf(3) says.
    pub fn instructions(&self) -> Result<Vec<Instruction>> {
        let file = fd::memory_file("corebox-seccomp")?;
        // SAFETY: a live context and an open descriptor.
        let result = unsafe { (self.library.export)(self.context, file.as_raw_fd()) };
        said("write", "a seccomp filter", result)?;
        let mut file = std::fs::File::from(file);
        let mut bytes = Vec::new();
        file.rewind()
            .and_then(|()| file.read_to_end(&mut bytes))
            .map_err(|e| Error::io("read", "a seccomp filter", &e))?;
        Ok(crate::seccomp::instructions(&bytes))
    }
}

impl Drop for Filter<'_> {
    fn drop(&mut self) {
        // SAFETY: the context is live and never used again.
        unsafe { (self.library.release)(self.context) }
    }
}

fn said(call: &'static str, object: impl Display, result: c_int) -> Result<()> {
    if result < 0 { Err(Error::new(call, object, Errno::from_raw(-result))) } else { Ok(()) }
}
