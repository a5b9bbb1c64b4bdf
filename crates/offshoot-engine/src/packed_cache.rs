//! Packed weights that are kept between runs, in a folder within a limit.

use std::path::{Path, PathBuf};

use offshoot_kernels::disk_bytes;
use offshoot_models::{Recipe, WeightCache};

use crate::kept::{Kind, touch};
use crate::store::FileDigests;

/// What tells such files from others.
const PACKED: Kind = Kind { ending: "pack", magic: WeightCache::MAGIC };
/// Bytes that they may have together, on a disk that is large enough.
const LIMIT: u64 = 16 << 30;
/// Which part of a smaller disk they may have.
const SHARE: u64 = 10;

/// Rises whenever quantising gives other bits, as the number in `base_id` does.
const QUANTISED: &str = "offshoot 2026 weights quantised on load v2";

/// Where a model's packed weights are kept.
#[derive(Debug)]
pub(crate) struct Cached {
    pub(crate) path: PathBuf,
    /// What they are made from: the model's files, and what they are quantised to.
    pub(crate) key: [u8; 32],
    /// The digest of the model's files.
    pub(crate) digest: [u8; 32],
}

impl Cached {
    /// The file below the cache's folder `dir` for the model in `files`. `None` if the folder
    /// cannot be made or the model cannot be read: loading then goes on without a cache.
    pub(crate) fn of(dir: &Path, files: &[PathBuf], recipe: Option<Recipe>) -> Option<Self> {
        let folder = folder(dir);
        std::fs::create_dir_all(&folder).ok()?;
        let digest = FileDigests::open(&dir.join("digests.json")).blake3_of_all(files).ok()?;
        let key = match recipe {
            None => digest,
            Some(recipe) => {
                blake3::derive_key(QUANTISED, &[&digest, recipe.name().as_bytes()].concat())
            }
        };
        let name: String = key[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        Some(Self { path: folder.join(format!("{name}.{}", PACKED.ending)), key, digest })
    }

    /// It was read or made: of the others those that were used longest ago go, until all together
    /// have at most `limit` bytes, or this one alone is left. `dir` is the cache's folder.
    pub(crate) fn used(&self, dir: &Path, limit: u64) {
        touch(&self.path);
        let own = std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len());
        PACKED.trim(&folder(dir), &[&self.path], limit.saturating_sub(own));
    }
}

fn folder(dir: &Path) -> PathBuf {
    dir.join("packed")
}

/// Bytes that packed weights may take in the cache's folder `dir` where nobody says how many: 16
/// GiB, or a tenth of its disk if that is less.
pub fn packed_cache_limit(dir: &Path) -> u64 {
    // It may not be there yet.
    let disk = dir.ancestors().find_map(disk_bytes);
    disk.map_or(LIMIT, |bytes| LIMIT.min(bytes / SHARE))
}

/// Bytes that packed weights take in the cache's folder `dir`.
pub fn packed_cache_bytes(dir: &Path) -> u64 {
    PACKED.bytes(&folder(dir))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn file(dir: &Path, name: &str, age_s: u64) -> Cached {
        let path = folder(dir).join(name);
        std::fs::create_dir_all(folder(dir)).unwrap();
        let mut bytes = WeightCache::MAGIC.to_vec();
        bytes.resize(100, 0);
        std::fs::write(&path, bytes).unwrap();
        let file = std::fs::File::options().append(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age_s)).unwrap();
        Cached { path, key: [0; 32], digest: [0; 32] }
    }

    #[test]
    fn the_weights_in_use_stay_and_of_the_others_those_that_were_used_last() {
        let dir = tempfile::tempdir().unwrap();
        let all = [("a.pack", 500), ("b.pack", 100), ("c.pack", 900)];
        let [old, new, own] = all.map(|(name, age_s)| file(dir.path(), name, age_s));
        let there = || [&old, &new, &own].map(|cached| cached.path.exists());
        assert_eq!(packed_cache_bytes(dir.path()), 300);
        own.used(dir.path(), 300);
        assert_eq!(there(), [true; 3]);
        own.used(dir.path(), 299);
        assert_eq!(there(), [false, true, true]);
        // Used just now: it is the other's turn.
        new.used(dir.path(), 100);
        assert_eq!(there(), [false, true, false]);
        new.used(dir.path(), 7);
        assert_eq!(packed_cache_bytes(dir.path()), 100, "what is in use stays, whatever the limit");
    }

    #[test]
    fn the_limit_is_no_more_than_a_tenth_of_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let limit = packed_cache_limit(dir.path());
        assert!(limit > 0 && limit <= LIMIT);
        if let Some(disk) = disk_bytes(dir.path()) {
            assert_eq!(limit, LIMIT.min(disk / SHARE));
        }
        assert_eq!(packed_cache_limit(&dir.path().join("not/there/yet")), limit);
    }
}
