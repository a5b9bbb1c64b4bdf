//! Which instructions the kernels use, chosen once at start.

/// An instruction set that this processor has, or one that is [assumed](Isa::assumed). All of them give
/// the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx2Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    #[cfg(target_arch = "aarch64")]
    NeonI8mm,
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
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("fma")
        {
            if is_x86_feature_detected!("avxvnni") {
                found.push(Isa(Kind::Avx2Vnni));
            }
            found.push(Isa(Kind::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            if std::arch::is_aarch64_feature_detected!("i8mm") {
                found.push(Isa(Kind::NeonI8mm));
            }
            found.push(Isa(Kind::NeonDot));
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

    /// The instruction set called `name`, of those that this program was built for, whether or not the
    /// processor has it: to test one that is not at hand.
    ///
    /// # Safety
    /// Its instructions must be executed, by the processor or for it.
    pub unsafe fn assumed(name: &str) -> Option<Isa> {
        const ALL: &[Kind] = &[
            Kind::Portable,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2Vnni,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16,
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot,
            #[cfg(target_arch = "aarch64")]
            Kind::NeonI8mm,
        ];
        ALL.iter().map(|&kind| Isa(kind)).find(|isa| isa.name() == name)
    }

    /// Its name: `portable`, `avx2`, `avx2-vnni`, `avx512-vnni`, `avx512-bf16`, `neon-dotprod` or
    /// `neon-i8mm`.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2Vnni => "avx2-vnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16 => "avx512-bf16",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonI8mm => "neon-i8mm",
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
    (@with $features:literal $lanes:ty, $kernel:ident [$($extra:ty),*]
        ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?) => {{
        #[target_feature(enable = $features)]
        #[allow(clippy::too_many_arguments)]
        unsafe fn with_features($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the caller has checked the features of this function.
            unsafe { $kernel::<$lanes, $($extra),*>($($arg),*) }
        }
        // SAFETY: an `Isa` of this kind exists only where the features were detected.
        unsafe { with_features($($arg),*) }
    }};
    (@by $isa:ident, $bf16:literal, $kernel:ident $extra:tt $args:tt $(-> $ret:ty)?) => {
        match $isa.kind() {
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Kind::Avx2 => $crate::isa::by_isa!(
                @with "avx2,f16c,fma" $crate::lanes::Avx2<false>, $kernel $extra $args $(-> $ret)?
            ),
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Kind::Avx2Vnni => $crate::isa::by_isa!(
                @with "avx2,avxvnni,f16c,fma"
                $crate::lanes::Avx2<true>, $kernel $extra $args $(-> $ret)?
            ),
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Kind::Avx512Bf16 if $bf16 => $crate::isa::by_isa!(
                @with "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,f16c,fma"
                $crate::lanes::Avx512<$bf16>, $kernel $extra $args $(-> $ret)?
            ),
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Kind::Avx512Vnni | $crate::isa::Kind::Avx512Bf16 => {
                $crate::isa::by_isa!(
                    @with "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c,fma"
                    $crate::lanes::Avx512<false>, $kernel $extra $args $(-> $ret)?
                )
            }
            #[cfg(target_arch = "aarch64")]
            $crate::isa::Kind::NeonDot => $crate::isa::by_isa!(
                @with "neon,dotprod" $crate::lanes::Neon<false>, $kernel $extra $args $(-> $ret)?
            ),
            #[cfg(target_arch = "aarch64")]
            $crate::isa::Kind::NeonI8mm => $crate::isa::by_isa!(
                @with "neon,dotprod,i8mm"
                $crate::lanes::Neon<true>, $kernel $extra $args $(-> $ret)?
            ),
            $crate::isa::Kind::Portable => {
                $crate::isa::by_isa!(@portable $kernel $extra $args)
            }
        }
    };
    (@portable $kernel:ident [$($extra:ty),*] ($($arg:ident: $ty:ty),*)) => {
        // SAFETY: portable lanes need no instructions.
        unsafe { $kernel::<$crate::lanes::Portable, $($extra),*>($($arg),*) }
    };
    (bf16 $(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?
        = $kernel:ident) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            $crate::isa::by_isa!(@by isa, true, $kernel [] ($($arg: $ty),*) $(-> $ret)?)
        }
    };
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?
        = $kernel:ident $([$($extra:ty),*])?) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            $crate::isa::by_isa!(
                @by isa, false, $kernel [$($($extra),*)?] ($($arg: $ty),*) $(-> $ret)?
            )
        }
    };
}

pub(crate) use by_isa;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_sets_are_found_by_name_and_the_portable_one_is_always_there() {
        let all = Isa::available();
        assert_eq!(all.last(), Some(&Isa::PORTABLE));
        for &isa in &all {
            assert_eq!(Isa::named(isa.name()), Some(isa));
        }
        assert_eq!(Isa::named("avx"), None);
        // Where the processor is known, as under an emulator, that nothing of it was overlooked.
        if let Ok(expected) = std::env::var("OFFSHOOT_EXPECTED_ISAS") {
            let names: Vec<_> = all.iter().map(|isa| isa.name()).collect();
            assert_eq!(names.join(","), expected);
        }
    }
}
