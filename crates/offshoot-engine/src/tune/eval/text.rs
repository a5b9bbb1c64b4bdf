//! Answers compared as texts.
//!
//! Exact match and F1 are those of SQuAD's own script (Rajpurkar et al. 2016,
//! <https://arxiv.org/abs/1606.05250>): letters are made small, punctuation and articles go, white
//! space is squeezed. ROUGE-L is the F-measure of the longest common subsequence (Lin 2004,
//! <https://aclanthology.org/W04-1013/>) of words as the `rouge_score` package cuts them, without
//! stemming.

use std::collections::HashMap;

/// Words of a text after SQuAD's normalisation.
fn normalised(text: &str) -> Vec<String> {
    let small = text.to_lowercase();
    let bare: String = small.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    // Articles go where they are whole words, also beside what is neither letter nor space.
    let mut kept = String::with_capacity(bare.len());
    let mut rest = bare.as_str();
    while !rest.is_empty() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        match &rest[..end] {
            "a" | "an" | "the" => kept.push(' '),
            word => kept.push_str(word),
        }
        rest = &rest[end..];
        let end = rest.find(is_word).unwrap_or(rest.len());
        kept.push_str(&rest[..end]);
        rest = &rest[end..];
    }
    kept.split_whitespace().map(str::to_owned).collect()
}

/// Whether `said` is `gold`, both normalised.
pub fn exact_match(said: &str, gold: &str) -> bool {
    normalised(said) == normalised(gold)
}

/// The harmonic mean of precision and recall of words, each as often as it comes; of texts without
/// words 1 if both have none.
pub fn token_f1(said: &str, gold: &str) -> f64 {
    let (said, gold) = (normalised(said), normalised(gold));
    if said.is_empty() || gold.is_empty() {
        return if said == gold { 1.0 } else { 0.0 };
    }
    let mut counts: HashMap<&String, usize> = HashMap::new();
    gold.iter().for_each(|word| *counts.entry(word).or_default() += 1);
    let take = |word: &&String| match counts.get_mut(*word) {
        Some(left) if *left > 0 => {
            *left -= 1;
            true
        }
        _ => false,
    };
    let same = said.iter().filter(take).count();
    f_measure(same, said.len(), gold.len())
}

/// The F-measure of the longest common subsequence of words.
pub fn rouge_l(said: &str, gold: &str) -> f64 {
    let words = |text: &str| -> Vec<String> {
        let small = text.to_lowercase();
        let cut = small.split(|c: char| !c.is_ascii_alphanumeric());
        cut.filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let (said, gold) = (words(said), words(gold));
    // Row by row, the longest for each beginning of `gold`.
    let mut longest = vec![0; gold.len() + 1];
    for word in &said {
        let mut before = 0;
        for (j, other) in gold.iter().enumerate() {
            let above = longest[j + 1];
            longest[j + 1] = if word == other { before + 1 } else { above.max(longest[j]) };
            before = above;
        }
    }
    f_measure(longest[gold.len()], said.len(), gold.len())
}

fn f_measure(same: usize, said: usize, gold: usize) -> f64 {
    if same == 0 {
        return 0.0;
    }
    let (precision, recall) = (same as f64 / said as f64, same as f64 / gold as f64);
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_compared_as_squad_compares_them() {
        assert_eq!(normalised("The  Cat, sat on a mat!"), ["cat", "sat", "on", "mat"]);
        assert_eq!(token_f1("the cat", "The cat."), 1.0);
        assert_eq!(token_f1("cat sat", "cat"), 2.0 / 3.0);
        // A word counts as often as both have it.
        assert_eq!(token_f1("cat cat cat", "cat cat dog"), 2.0 * 2.0 / 6.0);
        assert_eq!((token_f1("", ""), token_f1("", "cat"), token_f1("the", "an")), (1.0, 0.0, 1.0));
    }

    #[test]
    fn answers_are_normalised_as_squad_does() {
        for (said, gold, same) in [
            ("The Eiffel Tower.", "eiffel tower", true),
            ("an  apple, a day", "apple day", true),
            ("there", "here", false),
            ("don't", "dont", true),
            ("“The” end", "“ ” end", true),
            ("", "the", true),
            ("1,000", "1000", true),
        ] {
            assert_eq!(exact_match(said, gold), same, "{said:?} {gold:?}");
        }
    }

    /// Said two of three words, gold has four: precision 2/3, recall 1/2.
    #[test]
    fn words_that_come_twice_count_twice_at_most_as_often_as_in_gold() {
        assert!((token_f1("x y q", "x y z w") - 4.0 / 7.0).abs() < 1e-12);
        assert!((token_f1("x x x", "x y") - 0.4).abs() < 1e-12);
        assert_eq!(token_f1("q", "x"), 0.0);
        assert_eq!((token_f1("", ""), token_f1("the", "x")), (1.0, 0.0));
    }

    /// Lin's own: "police killed the gunman" against "the gunman police killed" and "police kill the
    /// gunman" share 2 and 3 words in order.
    #[test]
    fn subsequences_keep_the_order_of_words() {
        let gold = "Police killed the gunman";
        assert!((rouge_l("police kill the gunman", gold) - 0.75).abs() < 1e-12);
        assert!((rouge_l("the gunman kill police", gold) - 0.5).abs() < 1e-12);
        assert_eq!(rouge_l("", ""), 0.0);
    }

    proptest! {
        #[test]
        fn measures_are_symmetric_between_0_and_1_and_1_of_a_text_with_itself(
            a in "[a-e ]{0,20}", b in "[a-e ]{0,20}",
        ) {
            for measure in [token_f1, rouge_l] {
                prop_assert!((measure(&a, &b) - measure(&b, &a)).abs() < 1e-12);
                prop_assert!((0.0..=1.0).contains(&measure(&a, &b)));
            }
            prop_assert_eq!(token_f1(&a, &a), 1.0);
            prop_assert!(exact_match(&a, &b) == (token_f1(&a, &b) == 1.0) || a != b);
            let naive = naive_lcs(&a.split_whitespace().collect::<Vec<_>>(),
                &b.split_whitespace().collect::<Vec<_>>());
            let (n, m) = (a.split_whitespace().count(), b.split_whitespace().count());
            prop_assert!((rouge_l(&a, &b) - f_measure(naive, n, m)).abs() < 1e-12);
        }
    }

    fn naive_lcs(a: &[&str], b: &[&str]) -> usize {
        match (a, b) {
            ([x, a @ ..], [y, b @ ..]) if x == y => 1 + naive_lcs(a, b),
            ([_, rest_a @ ..], [_, rest_b @ ..]) => naive_lcs(rest_a, b).max(naive_lcs(a, rest_b)),
            _ => 0,
        }
    }
}
