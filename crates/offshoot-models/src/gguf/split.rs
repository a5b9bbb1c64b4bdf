//! A model that is split into several GGUF files, as llama.cpp's `llama-gguf-split` writes them.
//!
//! A part is a GGUF file with three keys of its own: `split.no`, from 0, `split.count`, and
//! `split.tensors.count`, that of all parts together. The first has the model's other keys as well,
//! and may have no tensors. Names are `{stem}-{no + 1}-of-{count}.gguf` with five digits for a number
//! (<https://github.com/ggml-org/llama.cpp/blob/master/tools/gguf-split/gguf-split.cpp>).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use offshoot_kernels::FileMap;

use super::reader::{Gguf, parse};
use super::{MAX_RECORDS, Shown, malformed};
use crate::checkpoint::Opened;
use crate::{Contents, Error};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
/// Most files of a model; those of the largest published ones are some 30.
pub const PARTS_MAX: u64 = 1024;

/// Which part of a model a file is by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartName<'a> {
    /// The model's name.
    pub stem: &'a str,
    /// The part's number, from 0.
    pub number: u64,
    /// How many parts there are.
    pub count: u64,
}

impl<'a> PartName<'a> {
    /// Reads the name of a file, without folders; `None` if it is not that of a part.
    pub fn parse(file: &'a str) -> Option<Self> {
        let (rest, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let read = |digits: &str| {
            let plain = digits.len() >= 5 && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse::<u64>().ok())?
        };
        let (number, count) = (read(number)?.checked_sub(1)?, read(count)?);
        let name = Self { stem, number, count };
        // More zeros than the five digits take would not lead back to this name.
        (number < count && name.to_string() == file).then_some(name)
    }
}

impl fmt::Display for PartName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Below `count`, which fits.
        write!(f, "{}-{:05}-of-{:05}.gguf", self.stem, self.number + 1, self.count)
    }
}

/// The files of a model of which `path`, with the bytes of `map`, is one, and what they say.
///
/// # Errors
/// [`Error::Io`] if a part cannot be read; [`Error::File`] if a file is damaged, or the parts are not
/// all of one model.
pub(crate) fn open(path: &Path, map: FileMap) -> Result<Opened, Error> {
    let first = parse(&map).map_err(|error| at(path, error))?;
    let parts = first.unsigned(COUNT).map_err(|error| at(path, error))?.unwrap_or(1);
    if parts <= 1 {
        let contents = first.contents().map_err(|error| at(path, error))?;
        return Ok(Opened { paths: vec![path.to_owned()], maps: vec![Arc::new(map)], contents });
    }
    let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = PartName::parse(file).ok_or_else(|| at(path, nameless(parts)))?;
    if name.count != parts || parts > PARTS_MAX {
        let most = PARTS_MAX.min(name.count);
        let what = format_args!("key \"{COUNT}\": {parts}, expected {most} by the file's name");
        return Err(at(path, malformed(what)));
    }
    let numbers = 0..parts;
    let names = numbers.map(|number| PartName { number, ..name });
    let paths: Vec<PathBuf> = names.map(|name| path.with_file_name(name.to_string())).collect();
    let mut maps = Vec::with_capacity(paths.len());
    let mut map = Some(map);
    for (number, part) in paths.iter().enumerate() {
        let given = if number as u64 == name.number { map.take() } else { None };
        maps.push(Arc::new(match given {
            Some(map) => map,
            None => open_part(part, number, paths.len())?,
        }));
    }
    let contents = joined_contents(&paths, &maps)?;
    Ok(Opened { paths, maps, contents })
}

fn open_part(path: &Path, number: usize, count: usize) -> Result<FileMap, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let wrong = |what| Err(Error::File { path: path.to_owned(), what });
    match path.metadata() {
        // Opening what is no file may wait for ever.
        Ok(found) if !found.is_file() => wrong("not a regular file".to_owned()),
        Ok(_) => FileMap::open(path).map_err(io),
        Err(error) if error.kind() == io::ErrorKind::NotFound => wrong(format!(
            "missing, part {} of the model's {count}, which must lie in one folder",
            number + 1
        )),
        Err(error) => Err(io(error)),
    }
}

fn joined_contents(paths: &[PathBuf], maps: &[Arc<FileMap>]) -> Result<Contents, Error> {
    let parse_at = |(map, path): (_, &PathBuf)| parse(map).map_err(|error| at(path, error));
    let files = maps.iter().map(|map| &***map).zip(paths);
    let parts = files.map(parse_at).collect::<Result<Vec<_>, _>>()?;
    let whole = join(parts).map_err(|(part, error)| at(&paths[part], error))?;
    whole.contents().map_err(|error| at(&paths[0], error))
}

/// One model of its `parts`, in order.
///
/// # Errors
/// [`Error::Gguf`] with the number, from 0, of the part that is at fault: it has another number or
/// another count than its place says, keys that are not the first's, or a tensor that an earlier one
/// has; or the number of all tensors is not what the parts say.
pub fn join(parts: Vec<Gguf<'_>>) -> Result<Gguf<'_>, (usize, Error)> {
    let count = parts.len();
    let mut parts = parts.into_iter().enumerate();
    let Some((_, mut whole)) = parts.next() else {
        return Err((0, malformed("no part of a model")));
    };
    check(&whole, 0, count).map_err(|error| (0, error))?;
    let total = whole.unsigned(TENSORS).map_err(|error| (0, error))?;
    for (number, part) in parts {
        check(&part, number, count).map_err(|error| (number, error))?;
        add(&mut whole, part, total).map_err(|error| (number, error))?;
    }
    let found = whole.tensors.len() as u64;
    match total.filter(|total| *total != found) {
        Some(total) => {
            let what = format_args!("key \"{TENSORS}\": {total}, but the parts have {found}");
            Err((0, malformed(what)))
        }
        None => Ok(whole),
    }
}

/// Checks that `part` is the one of this number among `count`.
fn check(part: &Gguf<'_>, number: usize, count: usize) -> Result<(), Error> {
    for (key, expected) in [(COUNT, count), (NUMBER, number)] {
        let found = part.unsigned(key)?;
        if found != Some(expected as u64) {
            let found = found.map_or_else(|| "missing".to_owned(), |found| found.to_string());
            let what = format_args!(
                "key \"{key}\": {found}, expected {expected} of part {} of {count}",
                number + 1
            );
            return Err(malformed(what));
        }
    }
    Ok(())
}

/// Adds a part's tensors to those before it.
fn add<'a>(whole: &mut Gguf<'a>, part: Gguf<'a>, total: Option<u64>) -> Result<(), Error> {
    let found = part.unsigned(TENSORS)?;
    if found != total {
        let [found, total] = [found, total]
            .map(|n| n.map_or_else(|| "missing".to_owned(), |number| number.to_string()));
        let what = format_args!("key \"{TENSORS}\": {found}, expected the first part's, {total}");
        return Err(malformed(what));
    }
    let own = |key: &str| key.starts_with("split.") || key == "general.alignment";
    let differs = |(key, value): &(&&str, _)| !own(key) && whole.metadata.get(*key) != Some(*value);
    if let Some((key, _)) = part.metadata.iter().find(differs) {
        let what = format_args!("key {}: not as in the first part of the model", Shown(key));
        return Err(malformed(what));
    }
    let file = whole.files.len();
    whole.files.extend(part.files);
    for (name, mut tensor) in part.tensors {
        tensor.file += file;
        if whole.tensors.insert(name, tensor).is_some() {
            return Err(malformed(format_args!("tensor {}: in an earlier part too", Shown(name))));
        }
    }
    if whole.tensors.len() as u64 > MAX_RECORDS {
        return Err(malformed(format_args!("more than {MAX_RECORDS} tensors in all parts")));
    }
    Ok(())
}

/// What is wrong with a file that is a part and does not say of what.
fn nameless(parts: u64) -> Error {
    malformed(format_args!(
        "key \"{COUNT}\": the model is split over {parts} files, whose names must end in \
         -00001-of-{parts:05}.gguf and so on"
    ))
}

impl Gguf<'_> {
    /// Refuses a part without the others.
    pub(super) fn refuse_part(&self) -> Result<(), Error> {
        match self.unsigned(COUNT)?.filter(|parts| *parts > 1 && self.files.len() == 1) {
            Some(parts) => Err(nameless(parts)),
            None => Ok(()),
        }
    }
}

/// An error about the bytes of the file at `path`.
fn at(path: &Path, error: Error) -> Error {
    let what = match error {
        Error::Gguf(what) => what,
        other => other.to_string(),
    };
    Error::File { path: path.to_owned(), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts_go_both_ways_and_others_are_none() {
        let name = PartName::parse("a-b-00002-of-00011.gguf").unwrap();
        assert_eq!(name, PartName { stem: "a-b", number: 1, count: 11 });
        assert_eq!(name.to_string(), "a-b-00002-of-00011.gguf");
        assert_eq!(PartName::parse("m-123456-of-123456.gguf").unwrap().number, 123_455);
        for other in [
            "m.gguf",
            "m-00001-of-00002.bin",
            "m-1-of-2.gguf",
            "m-00000-of-00002.gguf",
            "m-00003-of-00002.gguf",
            "m-000001-of-000002.gguf",
            "m-+0001-of-00002.gguf",
            "00001-of-00002.gguf",
            "m-00001-of-99999999999999999999.gguf",
        ] {
            assert_eq!(PartName::parse(other), None, "{other}");
        }
    }
}
