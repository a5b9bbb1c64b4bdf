//! AVX-VNNI's dot instruction, done by hand where the processor lacks it: the signal that it raises
//! there is caught, the instruction is read, its work is done, and the program goes on behind it.

use std::cell::Cell;
use std::sync::Once;

use libc::{c_int, c_void, siginfo_t, ucontext_t};
use offshoot_kernels::Isa;

thread_local! {
    /// Instructions of this thread that were done by hand.
    static DONE: Cell<u64> = const { Cell::new(0) };
}

/// General registers by the numbers that instructions give them.
#[rustfmt::skip]
const REGISTERS: [c_int; 16] = [
    libc::REG_RAX, libc::REG_RCX, libc::REG_RDX, libc::REG_RBX, libc::REG_RSP, libc::REG_RBP,
    libc::REG_RSI, libc::REG_RDI, libc::REG_R8, libc::REG_R9, libc::REG_R10, libc::REG_R11,
    libc::REG_R12, libc::REG_R13, libc::REG_R14, libc::REG_R15,
];
/// Where the state that a signal saves has the lower halves of the vector registers, which parts of
/// it are there, and the upper halves, one of these parts.
const LOW: usize = 160;
const PRESENT: usize = 512;
const HIGH: usize = 576;
const UPPER_HALVES: u64 = 1 << 2;

/// The instruction set of AVX2 with AVX-VNNI, on any processor with AVX2.
pub(crate) fn isa() -> Option<Isa> {
    static ONCE: Once = Once::new();
    if let Some(own) = Isa::named("avx2-vnni") {
        return Some(own);
    }
    if !is_x86_feature_detected!("avx2") {
        return None;
    }
    ONCE.call_once(|| {
        // SAFETY: an action of all zeros is one without flags; the handler keeps to what it is handed.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction =
                handle as extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
    // SAFETY: what the processor lacks the handler does.
    unsafe { Isa::assumed("avx2-vnni") }
}

/// How many of this thread's instructions were done by hand so far; `None` if the processor has them.
pub(crate) fn done_by_hand() -> Option<u64> {
    Isa::named("avx2-vnni").is_none().then(|| DONE.get())
}

extern "C" fn handle(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the system hands the state that the signal interrupted, which stands still meanwhile.
    unsafe {
        match emulate(&mut *context.cast()) {
            Some(()) => DONE.set(DONE.get() + 1),
            // Any other instruction ends the program, when it is met again.
            None => _ = libc::signal(libc::SIGILL, libc::SIG_DFL),
        }
    }
}

/// Does `vpdpbusd` of 256 bits and goes on behind it; `None` if the instruction is another one.
///
/// # Safety
/// `context` is the state of this thread at an instruction that was refused.
unsafe fn emulate(context: &mut ucontext_t) -> Option<()> {
    let registers = &mut context.uc_mcontext.gregs;
    let vectors: *mut u8 = context.uc_mcontext.fpregs.cast();
    let register = |number: usize| registers[REGISTERS[number] as usize];
    let at = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: instructions can be read, and one of this form has all of these bytes; operands in
    // memory can be, as the instruction would have read them.
    unsafe {
        // C4, then the upper bits of register numbers, inverted, and 0F38; then W, another register,
        // inverted, 256 bits and 66; then the operation.
        let [prefix, upper, middle, operation, mode] = at.cast::<[u8; 5]>().read();
        if (prefix, upper & 31, middle & 0x87, operation) != (0xC4, 2, 0x05, 0x50) {
            return None;
        }
        let bit = |byte: u8, at: u32| usize::from(!byte >> at & 1) << 3;
        let (r, x, b) = (bit(upper, 7), bit(upper, 6), bit(upper, 5));
        let sums = usize::from(mode >> 3 & 7) | r;
        let unsigned = usize::from(!middle >> 3 & 15);
        let (kind, low) = (mode >> 6, usize::from(mode & 7));
        let mut end = 5;
        let signed: [i8; 32] = if kind == 3 {
            vector(vectors, low | b).map(|byte| byte as i8)
        } else {
            let mut address = 0;
            let mut far = kind == 2;
            if low == 4 {
                let [scale, index, base] = [at.add(5).read(); 3];
                let (scale, index, base) = (scale >> 6, index >> 3 & 7, usize::from(base & 7));
                let index = usize::from(index) | x;
                end += 1;
                if index != 4 {
                    address += register(index) << scale;
                }
                match (base, kind) {
                    (5, 0) => far = true,
                    _ => address += register(base | b),
                }
            } else if (low, kind) == (5, 0) {
                // Behind the instruction, which ends with this distance.
                (far, address) = (true, at as i64 + 9);
            } else {
                address += register(low | b);
            }
            if far {
                address += i64::from(at.add(end).cast::<i32>().read_unaligned());
                end += 4;
            } else if kind == 1 {
                address += i64::from(at.add(end).cast::<i8>().read());
                end += 1;
            }
            (address as *const [i8; 32]).read_unaligned()
        };
        let unsigned = vector(vectors, unsigned);
        let mut result = vector(vectors, sums);
        for (i, sum) in result.chunks_exact_mut(4).enumerate() {
            let products =
                (4 * i..4 * i + 4).map(|j| i32::from(unsigned[j]) * i32::from(signed[j]));
            let before = i32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]);
            sum.copy_from_slice(&before.wrapping_add(products.sum::<i32>()).to_le_bytes());
        }
        vectors.add(LOW + 16 * sums).copy_from(result.as_ptr(), 16);
        let present = vectors.add(PRESENT).cast::<u64>();
        if present.read_unaligned() & UPPER_HALVES == 0 {
            // All were zero, and not saved.
            vectors.add(HIGH).write_bytes(0, 256);
            present.write_unaligned(present.read_unaligned() | UPPER_HALVES);
        }
        vectors.add(HIGH + 16 * sums).copy_from(result[16..].as_ptr(), 16);
        registers[libc::REG_RIP as usize] += end as i64;
    }
    Some(())
}

/// A vector register of a signal's saved state.
///
/// # Safety
/// `vectors` is that state, with the parts of AVX.
unsafe fn vector(vectors: *const u8, number: usize) -> [u8; 32] {
    let mut out = [0; 32];
    // SAFETY: the state has 16 registers at these places.
    unsafe {
        out[..16].copy_from_slice(&*vectors.add(LOW + 16 * number).cast::<[u8; 16]>());
        if vectors.add(PRESENT).cast::<u64>().read_unaligned() & UPPER_HALVES != 0 {
            out[16..].copy_from_slice(&*vectors.add(HIGH + 16 * number).cast::<[u8; 16]>());
        }
    }
    out
}
