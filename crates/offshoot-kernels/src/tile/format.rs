//! How each block format looks inside a tile.

use crate::BlockType;

/// The constants of a quantised format, for kernels that are compiled once per format.
///
/// A weight is `scale * (u - 2^ZERO_SHIFT)` or, with `OFFSET`, `scale * u + offset`; `u` is the
/// unsigned quant, or 128 plus its codebook value.
pub(crate) trait Format {
    /// Bits of a quant: 4, 5, 6 or 8.
    const BITS: usize;
    /// Weights that share a scale: 16 or 32.
    const SUB: usize = 32;
    /// Whether scales are 8-bit factors of a half-precision scale for 256 weights.
    const SUPER: bool = false;
    /// Whether those factors are signed.
    const SIGNED: bool = false;
    /// Whether there is an offset: added for plain formats, subtracted for `SUPER` ones.
    const OFFSET: bool = false;
    /// The binary logarithm of the zero point, if there is one.
    const ZERO_SHIFT: Option<u32> = None;
    /// Whether quants are indices into the codebook.
    const CODEBOOK: bool = false;
}

macro_rules! formats {
    ($($name:ident { $($const:ident: $ty:ty = $value:expr),* $(,)? })*) => {
        $(
            pub(crate) struct $name;
            impl Format for $name {
                $(const $const: $ty = $value;)*
            }
        )*
    };
}

formats! {
    Q4_0 { BITS: usize = 4, ZERO_SHIFT: Option<u32> = Some(3) }
    Q4_1 { BITS: usize = 4, OFFSET: bool = true }
    Q5_0 { BITS: usize = 5, ZERO_SHIFT: Option<u32> = Some(4) }
    Q5_1 { BITS: usize = 5, OFFSET: bool = true }
    Q8_0 { BITS: usize = 8, ZERO_SHIFT: Option<u32> = Some(7) }
    Q2K { BITS: usize = 4, SUB: usize = 16, SUPER: bool = true, OFFSET: bool = true }
    Q3K {
        BITS: usize = 4,
        SUB: usize = 16,
        SUPER: bool = true,
        SIGNED: bool = true,
        ZERO_SHIFT: Option<u32> = Some(2),
    }
    Q4K { BITS: usize = 4, SUPER: bool = true, OFFSET: bool = true }
    Q5K { BITS: usize = 5, SUPER: bool = true, OFFSET: bool = true }
    Q6K {
        BITS: usize = 6,
        SUB: usize = 16,
        SUPER: bool = true,
        SIGNED: bool = true,
        ZERO_SHIFT: Option<u32> = Some(5),
    }
    Iq4Nl { BITS: usize = 4, ZERO_SHIFT: Option<u32> = Some(7), CODEBOOK: bool = true }
    Iq4Xs {
        BITS: usize = 4,
        SUPER: bool = true,
        SIGNED: bool = true,
        ZERO_SHIFT: Option<u32> = Some(7),
        CODEBOOK: bool = true,
    }
}

/// The same constants as values, for code that runs once per tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) bits: usize,
    pub(crate) sub: usize,
    pub(crate) sup: bool,
    pub(crate) signed: bool,
    pub(crate) offset: bool,
    pub(crate) zero: i32,
    pub(crate) codebook: bool,
}

impl Shape {
    const fn of<F: Format>() -> Self {
        Self {
            bits: F::BITS,
            sub: F::SUB,
            sup: F::SUPER,
            signed: F::SIGNED,
            offset: F::OFFSET,
            zero: match F::ZERO_SHIFT {
                Some(shift) => 1 << shift,
                None => 0,
            },
            codebook: F::CODEBOOK,
        }
    }

    /// The shape of `block`, or `None` for float formats.
    pub(crate) const fn new(block: BlockType) -> Option<Self> {
        Some(match block {
            BlockType::F32 | BlockType::F16 | BlockType::Bf16 => return None,
            BlockType::Q4_0 => Self::of::<Q4_0>(),
            BlockType::Q4_1 => Self::of::<Q4_1>(),
            BlockType::Q5_0 => Self::of::<Q5_0>(),
            BlockType::Q5_1 => Self::of::<Q5_1>(),
            BlockType::Q8_0 => Self::of::<Q8_0>(),
            BlockType::Q2K => Self::of::<Q2K>(),
            BlockType::Q3K => Self::of::<Q3K>(),
            BlockType::Q4K => Self::of::<Q4K>(),
            BlockType::Q5K => Self::of::<Q5K>(),
            BlockType::Q6K => Self::of::<Q6K>(),
            BlockType::Iq4Nl => Self::of::<Iq4Nl>(),
            BlockType::Iq4Xs => Self::of::<Iq4Xs>(),
        })
    }

    /// Bytes of the quants of 16 rows x 32 inputs.
    pub(crate) const fn quant_bytes(self) -> usize {
        64 * self.bits
    }

    /// Bytes of the scales of 16 rows x `nblk` blocks of 32 inputs.
    pub(crate) const fn scale_bytes(self, nblk: usize) -> usize {
        let each = if self.offset { 2 } else { 1 };
        if self.sup { nblk / 8 * each * (32 + 16 * (256 / self.sub)) } else { nblk * each * 32 }
    }
}
