//! Instructions of eBPF as words (kernel: Documentation/bpf/standardization/instruction-set.rst).
//!
//! The two programs of the fast path have some forty instructions; a compiler (clang) at build time or a loader library
//! would be the larger dependency. Jumps go forward to labels only, so every program ends.

use corebox_sys::tcx::Instruction;
use std::collections::BTreeMap;

/// A register: R0 is the result, R1 to R5 arguments, R6 to R9 survive calls, R10 is the frame pointer.
pub type Register = u8;

/// Width of a memory access.
#[derive(Clone, Copy, Debug)]
pub enum Width {
    /// 8 bits.
    Byte = 0x10,
    /// 32 bits.
    Word = 0x00,
    /// 64 bits.
    Double = 0x18,
}

/// A program in the making.
#[derive(Default)]
pub struct Assembler {
    code: Vec<Instruction>,
    /// Jumps by the label they go to.
    jumps: Vec<(usize, &'static str)>,
    labels: BTreeMap<&'static str, usize>,
}

impl Assembler {
    fn push(&mut self, code: u8, to: Register, from: Register, offset: i16, immediate: i32) -> &mut Self {
        self.code.push(Instruction { code, registers: from << 4 | to, offset, immediate });
        self
    }
    /// `to = constant`, sign-extended to 64 bits.
    pub fn set(&mut self, to: Register, constant: i32) -> &mut Self {
        self.push(0xb7, to, 0, 0, constant)
    }
    /// `to = from`.
    pub fn copy(&mut self, to: Register, from: Register) -> &mut Self {
        self.push(0xbf, to, from, 0, 0)
    }
    /// `to += constant`.
    pub fn add(&mut self, to: Register, constant: i32) -> &mut Self {
        self.push(0x07, to, 0, 0, constant)
    }
    /// `to = *(base + offset)`.
    pub fn load(&mut self, width: Width, to: Register, base: Register, offset: i16) -> &mut Self {
        self.push(0x61 | width as u8, to, base, offset, 0)
    }
    /// `*(base + offset) = from`.
    pub fn store(&mut self, width: Width, base: Register, offset: i16, from: Register) -> &mut Self {
        self.push(0x63 | width as u8, base, from, offset, 0)
    }
    /// `*(base + offset) = constant`.
    pub fn store_constant(&mut self, width: Width, base: Register, offset: i16, constant: i32) -> &mut Self {
        self.push(0x62 | width as u8, base, 0, offset, constant)
    }
    /// `R0 =` 32 bits of the packet in the host's order; ends the program with 0 beyond its end. Needs the context in R6
    /// and destroys R1 to R5.
    pub fn packet_word(&mut self, offset: i32) -> &mut Self {
        self.push(0x20, 0, 0, 0, offset)
    }
    /// Turns the byte order of the low 32 bits around, where the host's is not the packet's.
    pub fn swap(&mut self, register: Register) -> &mut Self {
        self.push(0xdc, register, 0, 0, 32) // BPF_TO_BE: nothing on a big endian machine
    }
    /// Calls a helper of the kernel by its number in linux/bpf.h.
    pub fn call(&mut self, helper: i32) -> &mut Self {
        self.push(0x85, 0, 0, 0, helper)
    }
    /// Ends with R0.
    pub fn exit(&mut self) -> &mut Self {
        self.push(0x95, 0, 0, 0, 0)
    }
    /// Goes on at `label` if the low 32 bits of `register` differ from the constant.
    pub fn unless_equal(&mut self, register: Register, constant: i32, label: &'static str) -> &mut Self {
        self.jumps.push((self.code.len(), label));
        self.push(0x56, register, 0, 0, constant)
    }
    /// Goes on at `label` if the low 32 bits of `register` are the constant.
    pub fn if_equal(&mut self, register: Register, constant: i32, label: &'static str) -> &mut Self {
        self.jumps.push((self.code.len(), label));
        self.push(0x16, register, 0, 0, constant)
    }
    /// Goes on at `label`.
    pub fn jump(&mut self, label: &'static str) -> &mut Self {
        self.jumps.push((self.code.len(), label));
        self.push(0x05, 0, 0, 0, 0)
    }
    /// Names the next instruction.
    pub fn label(&mut self, label: &'static str) -> &mut Self {
        self.labels.insert(label, self.code.len());
        self
    }

    /// The program.
    ///
    /// # Panics
    /// A jump to a label that is not there, or backwards: a mistake in this crate.
    pub fn finish(&self) -> Vec<Instruction> {
        let mut code = self.code.clone();
        for (at, label) in &self.jumps {
            let to = self.labels.get(label).copied().filter(|to| to > at);
            let Some(to) = to else { panic!("no label `{label}` ahead") };
            code[*at].offset = (to - at - 1) as i16;
        }
        code
    }
}
