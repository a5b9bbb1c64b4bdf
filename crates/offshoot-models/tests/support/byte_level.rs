//! What a byte-level tokenizer has that others do not.

use offshoot_models::{PreTokenizer, TokenizerModel, TokenizerSpec};

/// The cutting rule.
pub(crate) fn pre(spec: &TokenizerSpec) -> PreTokenizer {
    match &spec.model {
        TokenizerModel::ByteLevel { pre, .. } => *pre,
        other => panic!("not byte-level: {other:?}"),
    }
}

/// The merges and the rule, to read and to change.
pub(crate) fn parts(spec: &mut TokenizerSpec) -> (&mut Vec<(String, String)>, &mut PreTokenizer) {
    match &mut spec.model {
        TokenizerModel::ByteLevel { merges, pre } => (merges, pre),
        other => panic!("not byte-level: {other:?}"),
    }
}

/// The merges.
pub(crate) fn merges(spec: &TokenizerSpec) -> &[(String, String)] {
    match &spec.model {
        TokenizerModel::ByteLevel { merges, .. } => merges,
        other => panic!("not byte-level: {other:?}"),
    }
}
