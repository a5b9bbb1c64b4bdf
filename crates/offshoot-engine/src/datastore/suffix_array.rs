//! Suffix arrays, by a library behind a trait.

use super::DatastoreError;

/// Sorts the suffixes of a text.
pub trait SuffixSorter {
    /// The sorter's name and version, for the record.
    fn name(&self) -> &str;

    /// Where each suffix of `text` begins, in order of the suffixes; one that ends where another
    /// goes on comes first. No value of `text` is negative. `text` may be used as working memory.
    ///
    /// # Errors
    /// [`DatastoreError::Sort`] if memory is short or the text too long.
    fn sort(&self, text: &mut [i32]) -> Result<Vec<u32>, DatastoreError>;
}

/// The induced sorting of Nong, Zhang and Chan (2009) as written by Ilya Grebnov in C,
/// <https://github.com/IlyaGrebnov/libsais>: linear time, and no memory beside text and result but a
/// few words a symbol of the alphabet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Libsais;

impl SuffixSorter for Libsais {
    fn name(&self) -> &str {
        "libsais"
    }

    fn sort(&self, text: &mut [i32]) -> Result<Vec<u32>, DatastoreError> {
        if text.is_empty() {
            return Ok(Vec::new()); // the library looks for the greatest symbol
        }
        let tokens = text.len();
        let wrong = |what: String| DatastoreError::Sort { tokens, what };
        if i32::try_from(tokens).is_err() {
            return Err(wrong("it counts to 2147483647".to_owned()));
        }
        let sorted = libsais::SuffixArrayConstruction::for_text_mut(text)
            .in_owned_buffer32()
            .single_threaded()
            .run()
            .map_err(|e| wrong(e.to_string()))?;
        Ok(sorted.into_vec().into_iter().map(i32::cast_unsigned).collect())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Compares suffixes as slices.
    pub(crate) struct Naive;

    impl SuffixSorter for Naive {
        fn name(&self) -> &str {
            "naive"
        }

        fn sort(&self, text: &mut [i32]) -> Result<Vec<u32>, DatastoreError> {
            let mut ranks: Vec<u32> = (0..text.len() as u32).collect();
            ranks.sort_by_key(|&at| &text[at as usize..]);
            Ok(ranks)
        }
    }

    #[track_caller]
    fn agrees(text: &[i32]) {
        let sorted = |sorter: &dyn SuffixSorter| sorter.sort(&mut text.to_vec()).unwrap();
        assert_eq!(sorted(&Libsais), sorted(&Naive), "{text:?}");
    }

    #[test]
    fn special_texts_are_sorted_as_by_comparison() {
        let mut fibonacci = (vec![1], vec![1, 0]);
        for _ in 0..9 {
            fibonacci = (fibonacci.1.clone(), [fibonacci.1, fibonacci.0].concat());
        }
        agrees(&[]);
        agrees(&[7]);
        agrees(&[5; 300]);
        agrees(&[1, 2, 3].repeat(50));
        agrees(&fibonacci.1);
        agrees(&[151_935, 0, 151_936, 151_935, 0, 262_143]);
    }

    proptest! {
        #[test]
        fn texts_are_sorted_as_by_comparison(
            small in prop::collection::vec(0i32..4, 0..400),
            large in prop::collection::vec(0i32..200_000, 0..400),
        ) {
            agrees(&small);
            agrees(&large);
        }
    }
}
