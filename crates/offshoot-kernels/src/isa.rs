//! Which instructions the kernels use, chosen once at start.

/// An instruction set that this processor has. All of them give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

impl Isa {
    /// The scalar reference, which runs anywhere and slowly.
    pub const PORTABLE: Isa = Isa(Kind::Portable);

    /// The instruction sets that this processor has, best first.
    pub fn available() -> Vec<Isa> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("fma")
        {
            if is_x86_feature_detected!("avx512bf16") {
                found.push(Isa(Kind::Avx512Bf16));
            }
            found.push(Isa(Kind::Avx512Vnni));
        }
        found.push(Isa::PORTABLE);
        found
    }

    /// The best instruction set of this processor.
    pub fn best() -> Isa {
        Isa::available()[0]
    }

    /// The available instruction set called `name`, if there is one.
    pub fn named(name: &str) -> Option<Isa> {
        Isa::available().into_iter().find(|isa| isa.name() == name)
    }

    /// Its name: `portable`, `avx512-vnni` or `avx512-bf16`.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16 => "avx512-bf16",
        }
    }

    pub(crate) const fn kind(self) -> Kind {
        self.0
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Makes a safe function `name(isa, ...)` of a generic `unsafe fn kernel<L: Lanes>(...)`, compiled
/// once for each instruction set. `by_isa!(bf16 ...)` also tells processors with the BF16 dot
/// instruction from those without.
///
/// The kernel must be sound for any arguments as soon as the instructions of `L` exist; an [`Isa`]
/// exists only where they do. Further type arguments of the kernel stand in brackets.
macro_rules! by_isa {
    (@vnni $kernel:ident [$($extra:ty),*] ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?) => {{
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c,fma")]
        #[allow(clippy::too_many_arguments)]
        unsafe fn vnni($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the caller has checked the features of this function.
            unsafe { $kernel::<$crate::lanes::Avx512<false>, $($extra),*>($($arg),*) }
        }
        // SAFETY: an `Isa` of this kind exists only where the features were detected.
        unsafe { vnni($($arg),*) }
    }};
    (@bf16 $kernel:ident ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?) => {{
        #[target_feature(
            enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,f16c,fma"
        )]
        #[allow(clippy::too_many_arguments)]
        unsafe fn bf16($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the caller has checked the features of this function.
            unsafe { $kernel::<$crate::lanes::Avx512<true>>($($arg),*) }
        }
        // SAFETY: an `Isa` of this kind exists only where the features were detected.
        unsafe { bf16($($arg),*) }
    }};
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?
        = $kernel:ident $([$($extra:ty),*])?) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            match isa.kind() {
                // SAFETY: portable lanes need no instructions.
                $crate::isa::Kind::Portable => unsafe {
                    $kernel::<$crate::lanes::Portable, $($($extra),*)?>($($arg),*)
                },
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Kind::Avx512Vnni | $crate::isa::Kind::Avx512Bf16 => {
                    $crate::isa::by_isa!(@vnni $kernel [$($($extra),*)?] ($($arg: $ty),*) $(-> $ret)?)
                }
            }
        }
    };
    (bf16 $(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?
        = $kernel:ident) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            match isa.kind() {
                // SAFETY: portable lanes need no instructions.
                $crate::isa::Kind::Portable => unsafe {
                    $kernel::<$crate::lanes::Portable>($($arg),*)
                },
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Kind::Avx512Vnni => {
                    $crate::isa::by_isa!(@vnni $kernel [] ($($arg: $ty),*) $(-> $ret)?)
                }
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Kind::Avx512Bf16 => {
                    $crate::isa::by_isa!(@bf16 $kernel ($($arg: $ty),*) $(-> $ret)?)
                }
            }
        }
    };
}
pub(crate) use by_isa;
