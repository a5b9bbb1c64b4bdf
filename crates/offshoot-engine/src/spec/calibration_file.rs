//! What sessions learned for drafting, kept for the next.
//!
//! A small JSON file for each model, number of threads, instruction set and processor: step times,
//! and how often each drafter's guesses came true, by how much chance was in the text: what is learned
//! of hot texts says little of greedy ones. It speeds up the first answers of a run and
//! changes no text, so it is never worth a failure: a file that is damaged, of another version or
//! of another machine counts as absent and is replaced by the next that is saved.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use offshoot_kernels::Cpu;
use offshoot_methods::draft::{BINS, CLASSES, Prior, StepTimes};
use serde::{Deserialize, Serialize};

use super::SamplingClass;
use crate::machine::processor;
use crate::store::{StoreError, write_whole};
use crate::{ExecutorKind, Model};

/// To be raised whenever the numbers of the file mean something else.
const VERSION: u32 = 2;
/// Guesses that a cell may bring along, so that a new text soon outweighs them.
const MOST_SEEN: f32 = 64.0;
/// The longest file that is read; one of all drafters takes a tenth.
const MOST_BYTES: u64 = 1 << 18;

/// What was learned for drafting.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Calibrated {
    /// The shape of step times; `None` if no step was seen.
    pub times: Option<StepTimes>,
    /// What each drafter's scores are worth, by its name, in each class of texts.
    pub drafters: BTreeMap<SamplingClass, BTreeMap<String, Prior>>,
}

/// What the contents of a file hold for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    version: u32,
    /// BLAKE3 of the model's file, in hexadecimal, and what it is quantised to while loading. Loading
    /// has it at hand; a base id, which alone knows a folder and a file of it for the same, takes a
    /// pass over all weights, and a second calibration costs less.
    model: String,
    threads: usize,
    isa: String,
    processor: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    key: Key,
    /// Times of 1, 2, ... rows over that of one; nothing if unknown.
    step_times: Vec<f64>,
    /// Steps of 1, 2, ... rows that they are known from, as far as that is counted.
    #[serde(default)]
    step_counts: Vec<u8>,
    drafters: BTreeMap<SamplingClass, BTreeMap<String, Table>>,
}

/// Hits and guesses seen, `[class of guess][bin]`.
type Table = Vec<Vec<(f32, f32)>>;

/// The file of one model on this machine, and what it held when it was last read.
#[derive(Debug)]
pub struct CalibrationFile {
    path: PathBuf,
    key: Key,
    held: Calibrated,
}

impl CalibrationFile {
    /// The file below the cache folder `cache` for steps of `model` on `cpu`; `None` if the model
    /// was loaded without a cache.
    pub fn open(cache: &Path, model: &Model, cpu: &Cpu) -> Option<Self> {
        let digest: String = model.digest()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = Key {
            version: VERSION,
            // What was quantised while loading, or adapted, has times of its own.
            model: match (model.recipe(), model.adapter()) {
                (None, None) => digest,
                (Some(recipe), None) => format!("{digest} as {recipe}"),
                (None, Some(adapter)) => format!("{digest} with {}", adapter.digest()),
                (Some(recipe), Some(adapter)) => {
                    format!("{digest} as {recipe} with {}", adapter.digest())
                }
            },
            threads: cpu.team().threads(),
            isa: match model.executor() {
                ExecutorKind::Packed => cpu.isa().to_string(),
                ExecutorKind::Dense { device, dtype } => format!("dense {device} {}", dtype.name()),
            },
            processor: processor().unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        };
        Some(Self::with(cache, key))
    }

    fn with(cache: &Path, key: Key) -> Self {
        let Key { version, model, threads, isa, processor } = &key;
        let text = format!("{version}\n{model}\n{threads}\n{isa}\n{processor}");
        let name = &blake3::hash(text.as_bytes()).to_hex()[..32];
        let path = cache.join("drafting").join(format!("{name}.json"));
        let held = read(&path, &key).unwrap_or_default();
        Self { path, key, held }
    }

    /// Where it is, or will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The processor that it holds for.
    pub fn processor(&self) -> &str {
        &self.key.processor
    }

    /// What it held when it was opened or last saved.
    pub fn calibrated(&self) -> &Calibrated {
        &self.held
    }

    /// Adds what was learned since: `now` grew out of [`CalibrationFile::calibrated`]. What another
    /// program saved meanwhile is kept beside it.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file cannot be written; the old one is still there then.
    pub fn save(&mut self, now: &Calibrated) -> Result<(), StoreError> {
        let theirs = read(&self.path, &self.key).unwrap_or_default();
        let merged = merge(&self.held, theirs, now);
        if merged == self.held && self.path.exists() {
            return Ok(());
        }
        self.write(merged)
    }

    /// Replaces the step times, as by a measurement of nothing else.
    ///
    /// # Errors
    /// As [`CalibrationFile::save`].
    pub fn save_times(&mut self, times: &StepTimes) -> Result<(), StoreError> {
        let mut all = read(&self.path, &self.key).unwrap_or_default();
        all.times = Some(times.clone());
        self.write(all)
    }

    fn write(&mut self, all: Calibrated) -> Result<(), StoreError> {
        let path = self.path.clone();
        let failed = |e| StoreError::io("write", &path, e);
        // Times that the next reader would not believe must not cost it the rest.
        let believed = all.times.iter().filter(|t| StepTimes::measured(&t.points()).is_some());
        let points = believed.flat_map(StepTimes::points);
        let table = |prior: &Prior| prior.iter().map(|class| class.to_vec()).collect::<Table>();
        let named = |of: &BTreeMap<String, Prior>| {
            of.iter().map(|(name, prior)| (name.clone(), table(prior))).collect()
        };
        let drafters = all.drafters.iter();
        let contents = Contents {
            key: self.key.clone(),
            step_times: points.map(|(_, over_one)| over_one).collect(),
            step_counts: all.times.iter().flat_map(|times| *times.seen()).collect(),
            drafters: drafters.map(|(&class, of)| (class, named(of))).collect(),
        };
        let json = serde_json::to_vec(&contents).map_err(|e| failed(e.into()))?;
        std::fs::create_dir_all(self.path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        write_whole(&self.path, &json)?;
        // As the next reader sees it.
        self.held = read(&self.path, &self.key).unwrap_or(all);
        Ok(())
    }
}

/// What the file at `path` holds, if it is sound and of `key`.
fn read(path: &Path, key: &Key) -> Option<Calibrated> {
    let mut json = Vec::new();
    File::open(path).ok()?.take(MOST_BYTES).read_to_end(&mut json).ok()?;
    parse(&json, key)
}

fn parse(json: &[u8], key: &Key) -> Option<Calibrated> {
    let contents: Contents = serde_json::from_slice(json).ok()?;
    if contents.key != *key {
        return None;
    }
    let points: Vec<(usize, f64)> = (1..).zip(contents.step_times).collect();
    let times = match points.is_empty() {
        true => None,
        false => Some(StepTimes::measured(&points)?.with_seen(contents.step_counts)),
    };
    let named = |of: BTreeMap<String, Table>| {
        of.into_iter().map(|(name, table)| Some((name, prior(&table)?))).collect::<Option<_>>()
    };
    let drafters = contents.drafters.into_iter().map(|(class, of)| Some((class, named(of)?)));
    Some(Calibrated { times, drafters: drafters.collect::<Option<_>>()? })
}

/// The counts of `table`, clipped; `None` if it has another shape or what no guesses could leave.
fn prior(table: &[Vec<(f32, f32)>]) -> Option<Prior> {
    let mut prior = [[(0.0, 0.0); BINS]; CLASSES];
    let sound = |&(hits, seen): &(f32, f32)| seen.is_finite() && 0.0 <= hits && hits <= seen;
    if table.len() != CLASSES {
        return None;
    }
    for (to, class) in prior.iter_mut().zip(table) {
        if class.len() != BINS || !class.iter().all(sound) {
            return None;
        }
        for (to, &cell) in to.iter_mut().zip(class) {
            *to = clipped(cell, MOST_SEEN);
        }
    }
    Some(prior)
}

/// A cell that stands for `most` guesses at most, of which the same share came true.
pub(super) fn clipped((hits, seen): (f32, f32), most: f32) -> (f32, f32) {
    if seen > most { (hits / seen * most, most) } else { (hits, seen) }
}

/// `theirs` with what `now` has learned since `held`.
fn merge(held: &Calibrated, theirs: Calibrated, now: &Calibrated) -> Calibrated {
    let times = match (&now.times, theirs.times) {
        (None, theirs) => theirs,
        (Some(ours), None) => Some(ours.clone()),
        (Some(ours), Some(theirs)) => match held.times.as_ref().map(StepTimes::points) {
            Some(held) if held == ours.points() => Some(theirs),
            Some(held) if held == theirs.points() => Some(ours.clone()),
            _ => Some(ours.between(&theirs)),
        },
    };
    let mut drafters = theirs.drafters;
    let each = now.drafters.iter().flat_map(|(class, of)| of.iter().map(move |one| (class, one)));
    for (class, (name, ours)) in each {
        let held = held.drafters.get(class).and_then(|of| of.get(name));
        let into = drafters.entry(*class).or_default().entry(name.clone()).or_insert(*ours);
        for (class, bins) in into.iter_mut().enumerate() {
            for (bin, cell) in bins.iter_mut().enumerate() {
                let (ours, held) = (ours[class][bin], held.map(|held| held[class][bin]));
                let newer = held.map_or(ours.1 >= cell.1, |held| ours != held);
                *cell = clipped(if newer { ours } else { *cell }, MOST_SEEN);
            }
        }
    }
    Calibrated { times, drafters }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GREEDY: SamplingClass = SamplingClass::Greedy;

    fn key() -> Key {
        let (model, isa, processor) = ("00ff".into(), "avx512".into(), "Some CPU".into());
        Key { version: VERSION, model, threads: 2, isa, processor }
    }

    fn learned(hits: f32, seen: f32) -> Calibrated {
        let mut times = StepTimes::default();
        (0..50).for_each(|i| times.observe(1 + i % 5, 0.01 * (1 + i % 5) as f64));
        let mut prior = [[(0.0, 0.0); BINS]; CLASSES];
        prior[2][3] = (hits, seen);
        let suffix = [("suffix".to_owned(), prior)].into();
        Calibrated { times: Some(times), drafters: [(GREEDY, suffix)].into() }
    }

    /// Without the scale, which is not kept.
    fn shape(calibrated: &Calibrated) -> Vec<(usize, f64)> {
        calibrated.times.iter().flat_map(StepTimes::points).collect()
    }

    #[test]
    fn what_was_learned_survives_a_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = CalibrationFile::with(dir.path(), key());
        assert_eq!(file.calibrated(), &Calibrated::default());
        let now = learned(3.25, 7.5);
        file.save(&now).unwrap();
        let again = CalibrationFile::with(dir.path(), key());
        assert_eq!(again.calibrated(), file.calibrated());
        assert_eq!(again.calibrated().drafters, now.drafters);
        let pairs = shape(again.calibrated()).into_iter().zip(shape(&now));
        // A number is read to its last bit or the one beside it.
        pairs.for_each(|((_, a), (_, b))| assert!((a / b - 1.0).abs() < 1e-15));
        let left = std::fs::read_dir(dir.path().join("drafting")).unwrap().count();
        assert_eq!(left, 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_of_another_machine_or_version_is_ignored() {
        let json = |key: Key| {
            let step_times = vec![1.0, 1.5];
            let contents =
                Contents { key, step_times, step_counts: vec![], drafters: BTreeMap::new() };
            serde_json::to_vec(&contents).unwrap()
        };
        assert!(parse(&json(key()), &key()).unwrap().times.is_some());
        let others = [
            Key { version: VERSION + 1, ..key() },
            Key { model: "ff00".into(), ..key() },
            Key { threads: 4, ..key() },
            Key { isa: "portable".into(), ..key() },
            Key { processor: "Another CPU".into(), ..key() },
        ];
        let dir = tempfile::tempdir().unwrap();
        let own = CalibrationFile::with(dir.path(), key()).path;
        for other in others {
            assert_eq!(parse(&json(other.clone()), &key()), None, "{other:?}");
            assert_ne!(CalibrationFile::with(dir.path(), other).path, own);
        }
    }

    #[test]
    fn a_hostile_file_is_ignored_and_rewritten() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = CalibrationFile::with(dir.path(), key());
        file.save(&learned(1.0, 2.0)).unwrap();
        let sound = std::fs::read_to_string(file.path()).unwrap();
        let swaps = [
            ("[1.0,2.0]", "[3.0,2.0]"),
            ("[1.0,2.0]", "[-1.0,2.0]"),
            ("[1.0,2.0]", "[1e99,1e99]"),
            ("[1.0,2.0]", "[null,2.0]"),
            ("[1.0,2.0],", ""),
            ("\"step_times\":[1.0", "\"step_times\":[0.0"),
            ("\"step_times\":[1.0", "\"step_times\":[-1.0"),
            ("\"step_times\":[1.0", "\"step_times\":[1.0,1e300"),
            ("\"version\":2", "\"version\":1"),
            ("\"greedy\"", "\"grey\""),
            ("\"key\"", "\"lock\""),
        ];
        let swapped = swaps.map(|(old, new)| {
            assert!(sound.contains(old), "{old}");
            sound.replacen(old, new, 1)
        });
        let long = format!("{}{sound}", " ".repeat(MOST_BYTES as usize));
        let cut = sound[..sound.len() / 2].to_owned();
        for hostile in swapped.into_iter().chain(["", "[", "{}", "\0"].map(Into::into)) {
            assert_eq!(parse(hostile.as_bytes(), &key()), None, "{hostile}");
        }
        for hostile in [long, cut] {
            std::fs::write(file.path(), &hostile).unwrap();
            let mut again = CalibrationFile::with(dir.path(), key());
            assert_eq!(again.calibrated(), &Calibrated::default());
            again.save(&learned(1.0, 2.0)).unwrap();
            assert_eq!(std::fs::read_to_string(file.path()).unwrap(), sound);
        }
        let folder = CalibrationFile::with(dir.path(), Key { threads: 3, ..key() }).path;
        std::fs::create_dir(&folder).unwrap();
        let mut file = CalibrationFile::with(dir.path(), Key { threads: 3, ..key() });
        assert!(file.save(&learned(1.0, 2.0)).is_err(), "and no panic");
    }

    #[test]
    fn counts_are_clipped_and_keep_their_share() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = CalibrationFile::with(dir.path(), key());
        file.save(&learned(25.0, 100.0)).unwrap();
        assert_eq!(file.calibrated().drafters[&GREEDY]["suffix"][2][3], (16.0, 64.0));
    }

    #[test]
    fn two_programs_keep_what_both_learned() {
        let dir = tempfile::tempdir().unwrap();
        CalibrationFile::with(dir.path(), key()).save(&learned(1.0, 2.0)).unwrap();
        let open = || CalibrationFile::with(dir.path(), key());
        let (mut one, mut two) = (open(), open());
        let mut mine = one.calibrated().clone();
        let greedy = mine.drafters.get_mut(&GREEDY).unwrap();
        greedy.get_mut("suffix").unwrap()[0][0] = (5.0, 6.0);
        greedy.insert("rest".into(), [[(1.0, 3.0); BINS]; CLASSES]);
        let warm = mine.drafters.entry(SamplingClass::Warm).or_default();
        warm.insert("suffix".into(), [[(0.0, 9.0); BINS]; CLASSES]);
        one.save(&mine).unwrap();
        let mut other = two.calibrated().clone();
        other.drafters.get_mut(&GREEDY).unwrap().get_mut("suffix").unwrap()[2][3] = (7.0, 8.0);
        two.save(&other).unwrap();
        let merged = open();
        let greedy = &merged.calibrated().drafters[&GREEDY];
        let suffix = greedy["suffix"];
        assert_eq!((suffix[0][0], suffix[2][3]), ((5.0, 6.0), (7.0, 8.0)));
        assert_eq!(greedy.len(), 2);
        let warm = &merged.calibrated().drafters[&SamplingClass::Warm]["suffix"];
        assert_eq!(warm[2][3], (0.0, 9.0), "classes are apart");
        // Times alone are saved without touching the drafters.
        let times = StepTimes::measured(&[(1, 1.0), (64, 2.0)]).unwrap();
        two.save_times(&times).unwrap();
        two.save(&Calibrated { times: Some(times.clone()), ..Calibrated::default() }).unwrap();
        assert_eq!(open().calibrated().drafters, merged.calibrated().drafters);
        assert!((open().calibrated().times.as_ref().unwrap().ratio(64) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn programs_that_save_at_once_leave_a_sound_file() {
        let dir = tempfile::tempdir().unwrap();
        let each = |n: usize| {
            let mut file = CalibrationFile::with(dir.path(), key());
            // A name of its own stands for a process of its own.
            let path = file.path.with_extension(format!("{n}"));
            for i in 0..20 {
                file.save(&learned(i as f32, 20.0 + n as f32)).unwrap();
                std::fs::copy(&file.path, &path).unwrap();
                assert!(parse(&std::fs::read(&path).unwrap(), &key()).is_some());
            }
        };
        each(0);
        let reader = || {
            (0..200).for_each(|_| {
                let path = CalibrationFile::with(dir.path(), key()).path;
                assert!(read(&path, &key()).is_some(), "the old file or the new one");
            });
        };
        std::thread::scope(|scope| {
            scope.spawn(reader);
            scope.spawn(reader);
            each(1);
        });
    }

    proptest! {
        #[test]
        fn no_bytes_are_believed(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(parse(&bytes, &key()), None);
        }

        #[test]
        fn a_sound_file_with_a_byte_changed_gives_sound_numbers_or_none(
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let table = vec![vec![(1.5f32, 20.25f32); BINS]; CLASSES];
            let drafters = [(GREEDY, [("suffix".to_owned(), table)].into())].into();
            let step_times = vec![1.0, 1.25, 1.5];
            let contents = Contents { key: key(), step_times, step_counts: vec![1; 3], drafters };
            let mut json = serde_json::to_vec(&contents).unwrap();
            let at = at.index(json.len());
            json[at] = byte;
            if let Some(read) = parse(&json, &key()) {
                let cells = read.drafters.values().flat_map(BTreeMap::values).flatten().flatten();
                for (hits, seen) in cells {
                    prop_assert!(0.0 <= *hits && hits <= seen && *seen <= MOST_SEEN);
                }
                let times = read.times.unwrap_or_default();
                prop_assert!((1..70).all(|k| times.ratio(k) <= times.ratio(k + 1)));
            }
        }
    }
}
