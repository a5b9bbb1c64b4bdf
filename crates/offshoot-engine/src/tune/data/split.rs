//! Which examples are held out.
//!
//! Each example has a keyed draw of its own; within a class those of the lowest draws are held out,
//! the next are trained on. So a split is a function of seed and classes alone, and an example's
//! draw does not depend on how many others there are.

use offshoot_methods::Philox;

use crate::tune::Example;

/// What a split asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitSizes {
    /// Examples of each class that are held out.
    pub held_out: usize,
    /// Examples of each class that are trained on; none for all others.
    pub train: Option<usize>,
}

/// The numbers of the examples, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Those to train on.
    pub train: Vec<usize>,
    /// Those to measure on.
    pub held_out: Vec<usize>,
}

/// Tells these draws from those of other purposes under one seed.
const PURPOSE: u32 = 0x7370_6c74;

/// Splits examples of `classes`, the class of each, so that each class is held out equally often.
///
/// # Errors
/// In words, if a class has too few examples.
pub fn split(classes: &[usize], sizes: SplitSizes, seed: u64) -> Result<Split, String> {
    let draw = |i: usize| {
        let block =
            Philox::block(Philox::key(seed), [i as u32, (i as u64 >> 32) as u32, 0, PURPOSE]);
        u64::from(block[0]) << 32 | u64::from(block[1])
    };
    let mut order: Vec<(usize, u64, usize)> =
        classes.iter().enumerate().map(|(i, &class)| (class, draw(i), i)).collect();
    order.sort_unstable();
    let mut split = Split { train: Vec::new(), held_out: Vec::new() };
    for class in order.chunk_by(|a, b| a.0 == b.0) {
        let wanted = sizes.held_out + sizes.train.unwrap_or(1);
        if class.len() < wanted {
            return Err(format!(
                "class {} has {} examples, and the split takes {wanted} of each",
                class[0].0,
                class.len()
            ));
        }
        let train = sizes.train.unwrap_or(class.len() - sizes.held_out);
        split.held_out.extend(class[..sizes.held_out].iter().map(|it| it.2));
        split.train.extend(class[sizes.held_out..sizes.held_out + train].iter().map(|it| it.2));
    }
    split.held_out.sort_unstable();
    split.train.sort_unstable();
    Ok(split)
}

/// The class of an example: the number of its right candidate, 0 where it has none.
pub fn class_of(example: &Example) -> usize {
    match example {
        Example::Choice { answers, .. } => answers[0],
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_class_is_held_out_equally_and_nothing_is_on_both_sides(
            classes in prop::collection::vec(0..3usize, 60..90), seed in any::<u64>(),
        ) {
            let sizes = SplitSizes { held_out: 5, train: None };
            let Ok(parts) = split(&classes, sizes, seed) else { return Ok(()) };
            for class in 0..3 {
                let held = parts.held_out.iter().filter(|&&i| classes[i] == class).count();
                prop_assert!(held == 5 || !classes.contains(&class));
            }
            let mut all = [&parts.train[..], &parts.held_out].concat();
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(0..classes.len()));
            prop_assert_eq!(&split(&classes, sizes, seed), &Ok(parts.clone()));
            prop_assert_ne!(&split(&classes, sizes, seed ^ 1), &Ok(parts));
        }
    }

    #[test]
    fn few_shots_are_as_many_of_each_class_and_too_few_are_told() {
        let classes: Vec<usize> = (0..40).map(|i| i % 2).collect();
        let parts = split(&classes, SplitSizes { held_out: 4, train: Some(16) }, 13).unwrap();
        assert_eq!((parts.train.len(), parts.held_out.len()), (32, 8));
        let told = split(&classes, SplitSizes { held_out: 5, train: Some(16) }, 13).unwrap_err();
        assert_eq!(told, "class 0 has 20 examples, and the split takes 21 of each");
    }
}
