//! Models dealt out to several GGUF files.

use super::tiny::Tiny;

/// The model dealt out to `count` parts as llama.cpp's tool would, tensors by name; the first may be
/// without any.
pub(crate) fn parts(tiny: &Tiny, count: usize, first_is_empty: bool) -> Vec<Tiny> {
    let skipped = usize::from(first_is_empty);
    let each = tiny.tensors.len().div_ceil(count - skipped);
    let part = |number: usize| {
        let mut part = tiny.clone();
        if number > 0 {
            part.keys.clear();
        }
        part.set("split.no", number as u16);
        part.set("split.count", count as u16);
        part.set("split.tensors.count", tiny.tensors.len() as i32);
        let first = number.checked_sub(skipped).map_or(usize::MAX, |turn| turn * each);
        let own =
            tiny.tensors.iter().enumerate().filter(|(i, _)| {
                first.checked_add(each).is_some_and(|end| (first..end).contains(i))
            });
        part.tensors = own.map(|(_, (name, tensor))| (name.clone(), tensor.clone())).collect();
        part
    };
    (0..count).map(part).collect()
}

/// What stands between the files of a model in one input of the fuzzer.
const SEPARATOR: &[u8] = b"\n==\n";
/// Files of one input.
const FILES_MAX: usize = 8;

/// All files in one.
pub(crate) fn joined(parts: &[Tiny]) -> Vec<u8> {
    parts.iter().map(Tiny::bytes).collect::<Vec<_>>().join(SEPARATOR)
}

/// The files of one input; the last has all that is behind the seventh.
pub(crate) fn split(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut files, mut rest) = (Vec::new(), bytes);
    while files.len() + 1 < FILES_MAX
        && let Some(end) = rest.windows(SEPARATOR.len()).position(|window| window == SEPARATOR)
    {
        files.push(&rest[..end]);
        rest = &rest[end + SEPARATOR.len()..];
    }
    files.push(rest);
    files
}
