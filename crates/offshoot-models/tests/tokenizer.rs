//! Tokenizers of made-up vocabularies: against Hugging Face's library, laws, and hostile lists.
//!
//! Real models' tokenizers are checked by `support/tokenizer_reference.rs`.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

#[path = "support/byte_level.rs"]
mod byte_level;
#[path = "support/mixed_text.rs"]
mod mixed_text;
#[path = "support/tokenizer_files.rs"]
#[allow(dead_code)] // only the patterns
mod tokenizer_files;

use mixed_text::Source;
use offshoot_models::{
    Controls, Detokenizer, PreTokenizer, Special, TokenKind, Tokenizer, TokenizerModel,
    TokenizerSpec,
};
use proptest::prelude::*;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, Model, NormalizerWrapper, PreTokenizerWrapper, normalizers};
use tokenizers::{SplitDelimiterBehavior, Tokenizer as Library};

const RULES: [PreTokenizer; 11] = [
    PreTokenizer::Gpt2,
    PreTokenizer::SmolLm,
    PreTokenizer::CommandR,
    PreTokenizer::Qwen2,
    PreTokenizer::Llama3,
    PreTokenizer::Tekken,
    PreTokenizer::Gpt4o,
    PreTokenizer::Qwen35,
    PreTokenizer::DeepSeekLlm,
    PreTokenizer::DeepSeekCoder,
    PreTokenizer::DeepSeekV3,
];

/// Added tokens, some of which start with another, and holes.
const ADDED: [(&str, TokenKind); 8] = [
    ("<|end|>", TokenKind::Control),
    ("<|end|><|end|>", TokenKind::Control),
    ("<unk>", TokenKind::Unknown),
    ("<|start|>", TokenKind::Control),
    ("<tool>", TokenKind::UserDefined),
    ("[PAD0]", TokenKind::Unused),
    ("[PAD1]", TokenKind::Unused),
    ("　wide é", TokenKind::UserDefined),
];

/// The byte-level alphabet, by the rule of GPT-2's encoder.
fn alphabet() -> Vec<String> {
    let mut next = 255;
    let mut letter = |byte: u32| {
        let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        next += u32::from(!printable);
        char::from_u32(if printable { byte } else { next }).unwrap().to_string()
    };
    (0..256).map(&mut letter).collect()
}

/// All bytes, then what `words` need to become one token each, left to right, then [`ADDED`].
fn spec(pre: PreTokenizer, words: &[&str]) -> TokenizerSpec {
    let letters = alphabet();
    let mut tokens = letters.clone();
    let mut merges = Vec::new();
    for word in words {
        let mut left = letters[word.as_bytes()[0] as usize].clone();
        for byte in word.bytes().skip(1) {
            let right = &letters[byte as usize];
            let whole = format!("{left}{right}");
            if !merges.contains(&(left.clone(), right.clone())) {
                merges.push((left, right.clone()));
                tokens.push(whole.clone());
            }
            left = whole;
        }
    }
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    tokens.extend(ADDED.map(|(text, _)| text.to_owned()));
    kinds.extend(ADDED.map(|(_, kind)| kind));
    TokenizerSpec {
        tokens,
        kinds,
        model: TokenizerModel::ByteLevel { merges, pre },
        matching: Vec::new(),
        bos: None,
        eos: Some(0),
        pad: None,
        unk: None,
        add_bos: false,
        add_eos: false,
        end_of_turn: Vec::new(),
    }
}

/// A vocabulary that merges across spaces, scripts, digits, line ends and combining marks.
fn rich(pre: PreTokenizer) -> TokenizerSpec {
    let words = [
        " the", "the", "an", " and", "ing", "ed", "'s", "'ll", "'LL", "12", "123", " 1", "é",
        "e\u{301}", "\u{301}", "Å", "你好", "世界", "при", " мир", "ا", "ال", "नम", "한", "각",
        "  ", "    ", "\n\n", "\r\n", "\t\t", " \n", "😀", "\u{200d}", "()", "==", "::", " =",
        "//", "aa", "aaaa", "ab", "ba", "return", "\u{3000}", "wide", "<|", "|>", "end", "ſ",
    ];
    spec(pre, &words)
}

/// The library's tokenizer for `spec`, with the pipelines that model files of each family carry.
fn library(spec: &TokenizerSpec) -> Library {
    let pre = byte_level::pre(spec);
    let vocab = spec.tokens.iter().cloned().zip(0u32..);
    let known = vocab.filter(|(_, id)| spec.kinds[*id as usize] != TokenKind::Unused);
    let model = BPE::builder()
        .vocab_and_merges(known.collect::<Vocab>(), byte_level::merges(spec).to_vec())
        .ignore_merges(matches!(pre, PreTokenizer::Llama3 | PreTokenizer::Tekken))
        .build()
        .unwrap();
    let mut library = Library::new(model);
    let split = |pattern: String| {
        let pattern = SplitPattern::Regex(pattern);
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap().into()
    };
    let bytes = |regex: bool| PreTokenizerWrapper::from(ByteLevel::new(false, true, regex));
    let digits = |each: bool| PreTokenizerWrapper::from(Digits::new(each));
    let cuts = || tokenizer_files::patterns(pre).into_iter().map(split);
    let steps: Vec<PreTokenizerWrapper> = match pre {
        PreTokenizer::Gpt2 => vec![bytes(true)],
        PreTokenizer::SmolLm | PreTokenizer::CommandR => vec![digits(true), bytes(true)],
        PreTokenizer::DeepSeekLlm => cuts().chain([digits(false), bytes(false)]).collect(),
        PreTokenizer::DeepSeekCoder => cuts().chain([digits(true), bytes(false)]).collect(),
        _ => cuts().chain([bytes(false)]).collect(),
    };
    library.with_pre_tokenizer(Some(Sequence::new(steps)));
    if matches!(pre, PreTokenizer::Qwen2 | PreTokenizer::Qwen35 | PreTokenizer::CommandR) {
        let nfc = NormalizerWrapper::from(normalizers::unicode::NFC);
        library.with_normalizer(Some(nfc)).unwrap();
    }
    for (text, kind) in ADDED {
        let special = matches!(kind, TokenKind::Control | TokenKind::Unknown);
        if special || kind == TokenKind::UserDefined {
            let token = AddedToken::from(text, special).normalized(false);
            library.add_tokens([token]).unwrap();
            assert_eq!(library.token_to_id(text), library.get_model().token_to_id(text));
        }
    }
    library
}

fn library_ids(library: &mut Library, text: &str, special: Special) -> Vec<u32> {
    library.set_encode_special_tokens(special == Special::Text);
    library.encode(text, false).unwrap().get_ids().to_vec()
}

#[test]
fn ids_are_the_librarys_for_every_rule() {
    let source = Source::load();
    let mixed = source.mixed_text(1_000_000);
    let strings = source.random_strings(100_000);
    let check = |spec: &TokenizerSpec| {
        let tokenizer = Tokenizer::new(spec).unwrap();
        let mut library = library(spec);
        for text in strings.iter().chain([&mixed]) {
            let ids = tokenizer.encode(text, Special::Parse).unwrap();
            let expected = library_ids(&mut library, text, Special::Parse);
            assert_eq!(ids, expected, "{:?}, {:.60?}", byte_level::pre(spec), text);
            assert_eq!(tokenizer.decode(&ids, Controls::Keep).is_empty(), text.is_empty());
        }
    };
    // A thread a rule: one after another they take minutes.
    std::thread::scope(|scope| {
        for pre in RULES {
            scope.spawn(move || check(&rich(pre)));
        }
    });
}

#[test]
fn texts_are_the_librarys() {
    let spec = rich(PreTokenizer::Gpt2);
    let tokenizer = Tokenizer::new(&spec).unwrap();
    let mut library = library(&spec);
    library.with_decoder(Some(ByteLevel::default()));
    // The library's decoder reads the text of an added token in the byte-level alphabet, too.
    let foreign = tokenizer.id_of("　wide é").unwrap();
    for mut ids in Source::load().random_ids(2_000, spec.tokens.len()) {
        ids.retain(|id| *id != foreign);
        for (controls, skip) in [(Controls::Keep, false), (Controls::Skip, true)] {
            assert_eq!(tokenizer.decode(&ids, controls), library.decode(&ids, skip).unwrap());
        }
    }
}

#[test]
fn control_tokens_are_text_in_a_users_words() {
    let tokenizer = Tokenizer::new(&rich(PreTokenizer::Gpt2)).unwrap();
    let id = |text: &str| tokenizer.id_of(text).unwrap();
    let text = "a<|end|><|end|><|end|><tool><unk>";
    let parsed = tokenizer.encode(text, Special::Parse).unwrap();
    let (a, twice, once) = (id("a"), id("<|end|><|end|>"), id("<|end|>"));
    assert_eq!(parsed, [a, twice, once, id("<tool>"), id("<unk>")]);
    let plain = tokenizer.encode(text, Special::Text).unwrap();
    assert!(plain.iter().all(|id| !tokenizer.is_control(*id)));
    assert!(plain.contains(&id("<tool>")));
    assert_eq!(tokenizer.decode(&plain, Controls::Skip), text);
    assert_eq!(tokenizer.decode(&parsed, Controls::Skip), "a<tool>");
    assert_eq!(tokenizer.decode(&parsed, Controls::Keep), text);
}

#[test]
fn holes_are_no_tokens() {
    let tokenizer = Tokenizer::new(&rich(PreTokenizer::Llama3)).unwrap();
    let count = tokenizer.vocab_size() as u32;
    let hole = count - 3;
    assert_eq!(tokenizer.token_bytes(hole), None);
    assert_eq!(tokenizer.token_bytes(count), None);
    assert_eq!(tokenizer.id_of("[PAD0]"), None);
    assert!(!tokenizer.encode("[PAD0][PAD1]", Special::Parse).unwrap().contains(&hole));
    assert_eq!(tokenizer.decode(&[hole, count, u32::MAX], Controls::Keep), "");
}

#[test]
fn tokens_are_known_by_text_and_bytes() {
    let tokenizer = Tokenizer::new(&rich(PreTokenizer::Gpt2)).unwrap();
    let the = tokenizer.id_of(" the").unwrap();
    assert_eq!(tokenizer.token_bytes(the), Some(&b" the"[..]));
    assert_eq!(tokenizer.token_bytes(0xFF), Some(&[0xFF][..]));
    assert_eq!(tokenizer.id_of("Ġthe"), None);
    let wide = tokenizer.id_of("　wide é").unwrap();
    assert_eq!(tokenizer.token_bytes(wide), Some("　wide é".as_bytes()));
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos()), (None, Some(0), false));
}

#[test]
fn a_byte_without_a_token_is_dropped() {
    let mut spec = spec(PreTokenizer::Gpt2, &["ab"]);
    spec.kinds[4] = TokenKind::Unused;
    let tokenizer = Tokenizer::new(&spec).unwrap();
    let ab = tokenizer.id_of("ab").unwrap();
    // What is left of a word merges across the gap; U+0004 and letters are no one word.
    assert_eq!(tokenizer.encode("ab\u{4}ab", Special::Text).unwrap(), [ab, ab]);
}

#[test]
fn a_merge_may_make_a_user_defined_token_but_no_control_token() {
    let mut spec = spec(PreTokenizer::Gpt2, &["ab"]);
    let ab = 256;
    spec.kinds[ab] = TokenKind::UserDefined;
    let tokenizer = Tokenizer::new(&spec).unwrap();
    assert_eq!(tokenizer.encode("abab", Special::Text).unwrap(), [256, 256]);
    spec.kinds[ab] = TokenKind::Control;
    let error = Tokenizer::new(&spec).unwrap_err().to_string();
    assert!(error.contains("merge 0 joins \"a\" and \"b\""), "{error}");
}

#[test]
fn hostile_lists_are_errors_of_one_line() {
    type Change = fn(&mut TokenizerSpec);
    let changes: [(&str, Change); 13] = [
        ("vocabulary is empty", |s| (s.tokens, s.kinds) = (Vec::new(), Vec::new())),
        ("263 token kinds for 264", |s| s.kinds.truncate(263)),
        ("tokens 65 and 66 are both \"A\"", |s| s.tokens[66] = "A".into()),
        ("are both \"<|end|>\"", |s| s.tokens[259] = "<|end|>".into()),
        ("merge 0", |s| *byte_level::parts(s).0 = vec![("a".into(), "zz".into())]),
        ("merge 0", |s| *byte_level::parts(s).0 = vec![("a".into(), "b".into())]),
        ("merge 0", |s| *byte_level::parts(s).0 = vec![("a b".into(), "\u{4e00}".into())]),
        ("merge 0", |s| *byte_level::parts(s).0 = vec![("".into(), "".into())]),
        ("merge 0 joins \"xxxx", |s| {
            *byte_level::parts(s).0 = vec![("x".repeat(1 << 20), "\n".into())]
        }),
        ("eos id is 264, of 264", |s| s.eos = Some(264)),
        ("bos id is 4294967295", |s| s.bos = Some(u32::MAX)),
        ("end of turn id is 999", |s| s.end_of_turn = vec![0, 999]),
        ("bytes of text, at most", |s| s.tokens[256] = "y".repeat(2 << 20)),
    ];
    for (expected, change) in changes {
        let mut spec = spec(PreTokenizer::Qwen2, &[]);
        change(&mut spec);
        let error = Tokenizer::new(&spec).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.starts_with("tokenizer: ") && error.len() < 300 && !error.contains('\n'));
    }
}

#[test]
fn empty_texts_of_tokens_match_nothing() {
    let mut spec = spec(PreTokenizer::Gpt2, &[]);
    spec.tokens[256] = String::new();
    let tokenizer = Tokenizer::new(&spec).unwrap();
    assert_eq!(tokenizer.encode("ab", Special::Parse).unwrap(), [97, 98]);
    assert!(tokenizer.encode("", Special::Parse).unwrap().is_empty());
}

#[test]
fn a_run_of_millions_is_an_error_and_one_of_a_million_is_not() {
    let tokenizer = Tokenizer::new(&rich(PreTokenizer::Qwen2)).unwrap();
    let run = tokenizer.encode(&" ".repeat(1 << 20), Special::Text).unwrap();
    assert_eq!(run.len(), 1 << 19); // The merges make tokens of two spaces.
    let error = tokenizer.encode(&" ".repeat(8 << 20), Special::Text).unwrap_err().to_string();
    assert!(error.contains("byte 0") && error.contains("break up runs"), "{error}");
}

/// Texts of words, marks, spaces and anything.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "\\PC{0,6}",
        "[ \t\r\n\u{a0}\u{3000}]{1,5}",
        "[a-eA-E0-9'<|>]{1,9}",
        "[e\u{300}-\u{330}\u{1100}-\u{1112}\u{1161}-\u{1175}]{1,6}",
        any::<char>().prop_map(String::from),
        proptest::sample::select(ADDED.map(|(text, _)| text.to_owned()).to_vec()),
    ];
    proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn any_text_has_the_librarys_ids(text in text(), rule in 0usize..RULES.len(), parse: bool) {
        let spec = rich(RULES[rule]);
        let tokenizer = Tokenizer::new(&spec).unwrap();
        let special = if parse { Special::Parse } else { Special::Text };
        let ids = tokenizer.encode(&text, special).unwrap();
        prop_assert_eq!(ids, library_ids(&mut library(&spec), &text, special));
    }

    #[test]
    fn text_survives_the_way_there_and_back(text in text(), rule in 0usize..RULES.len(), parse: bool) {
        // NFC changes texts.
        let nfc = [PreTokenizer::Qwen2, PreTokenizer::Qwen35, PreTokenizer::CommandR];
        prop_assume!(!nfc.contains(&RULES[rule]));
        let tokenizer = Tokenizer::new(&rich(RULES[rule])).unwrap();
        let special = if parse { Special::Parse } else { Special::Text };
        let ids = tokenizer.encode(&text, special).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, Controls::Keep), text);
    }

    #[test]
    fn pushed_text_is_decoded_text(
        ids in proptest::collection::vec(prop_oneof![0u32..500, 120u32..256, any::<u32>()], 0..40),
        keep: bool,
    ) {
        let tokenizer = Tokenizer::new(&rich(PreTokenizer::Gpt2)).unwrap();
        let controls = if keep { Controls::Keep } else { Controls::Skip };
        let mut detokenizer = Detokenizer::new(&tokenizer, controls);
        let mut pushed = String::new();
        ids.iter().for_each(|id| pushed.push_str(detokenizer.push(*id)));
        pushed += &detokenizer.finish();
        prop_assert_eq!(pushed, tokenizer.decode(&ids, controls));
        prop_assert_eq!(detokenizer.finish(), "");
    }
}

#[test]
fn characters_come_whole_and_as_soon_as_they_can() {
    let tokenizer = Tokenizer::new(&spec(PreTokenizer::Gpt2, &[])).unwrap();
    let mut detokenizer = Detokenizer::new(&tokenizer, Controls::Skip);
    let mut push = |bytes: &[u8]| -> Vec<String> {
        bytes.iter().map(|byte| detokenizer.push(u32::from(*byte)).to_owned()).collect()
    };
    assert_eq!(push("é😀".as_bytes()), ["", "é", "", "", "", "😀"]);
    // A byte that cannot go on ends what waits; a byte that can start nothing does not wait.
    assert_eq!(
        push(&[0xF0, 0x9F, b'a', 0xFF, 0xE4, 0xE4]),
        ["", "", "\u{fffd}a", "\u{fffd}", "", "\u{fffd}"]
    );
    assert_eq!(detokenizer.finish(), "\u{fffd}");
}
