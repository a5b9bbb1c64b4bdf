//! What processor this is.

use std::collections::BTreeSet;
use std::path::Path;

/// Where Linux describes the processors.
const PROCESSORS: &str = "/sys/devices/system/cpu";

/// The processor's name, where the system tells it.
pub fn processor() -> Option<String> {
    name(&std::fs::read_to_string("/proc/cpuinfo").ok()?)
}

/// Cores of this machine, each once however many threads it runs; `None` where the system does not
/// say.
pub fn cores() -> Option<usize> {
    cores_below(Path::new(PROCESSORS))
}

/// Bytes of the largest caches of all processors together; `None` where the system does not say.
pub(crate) fn cache_bytes() -> Option<u64> {
    caches_below(Path::new(PROCESSORS))
}

/// Arm's kernels give a maker and a part for a name.
fn name(cpuinfo: &str) -> Option<String> {
    let field = |key: &str| {
        let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
    };
    if let Some(name) = field("model name") {
        return Some(name.to_owned());
    }
    let (maker, part) = (field("CPU implementer")?, field("CPU part")?);
    let maker = match maker {
        "0x41" => "Arm",
        "0x46" => "Fujitsu",
        "0x51" => "Qualcomm",
        "0x61" => "Apple",
        "0x6d" => "Microsoft",
        "0xc0" => "Ampere",
        other => other,
    };
    Some(format!("{maker} part {part}"))
}

/// What `read` gives of each processor's folder, each once.
fn distinct<T: Ord>(below: &Path, read: impl Fn(&Path) -> Option<T>) -> Option<BTreeSet<T>> {
    let folders = std::fs::read_dir(below).ok()?.filter_map(Result::ok).filter(|entry| {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("cpu"));
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    });
    // One that is switched off has no such files.
    let all: BTreeSet<T> = folders.filter_map(|entry| read(&entry.path())).collect();
    (!all.is_empty()).then_some(all)
}

fn line(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn cores_below(folder: &Path) -> Option<usize> {
    let core = |cpu: &Path| {
        let of = |what: &str| line(&cpu.join("topology").join(what));
        Some((of("physical_package_id")?, of("core_id")?))
    };
    distinct(folder, core).map(|cores| cores.len())
}

fn caches_below(folder: &Path) -> Option<u64> {
    let largest = |cpu: &Path| {
        let of = |index: usize, what: &str| line(&cpu.join(format!("cache/index{index}/{what}")));
        let last = (0..8).rev().find_map(|index| Some((index, of(index, "size")?)));
        let (index, size) = last?;
        let kib = size.strip_suffix('K')?.parse::<u64>().ok()?;
        Some((of(index, "shared_cpu_list")?, kib))
    };
    distinct(folder, largest).map(|caches| caches.iter().map(|(_, kib)| kib * 1024).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn processors_have_the_names_that_the_system_gives() {
        let amd = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9654\n";
        assert_eq!(name(amd).as_deref(), Some("AMD EPYC 9654"));
        let arm = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\n\
                   CPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\n";
        assert_eq!(name(arm).as_deref(), Some("Arm part 0xd0c"));
        assert_eq!(name(&arm.replace("0x41", "0x99")).as_deref(), Some("0x99 part 0xd0c"));
        assert_eq!(name("processor: 0\n"), None);
        assert_eq!(name(""), None);
    }

    /// Two packages of two cores of two threads, and one processor that is switched off.
    fn machine() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for cpu in 0..8 {
            let (package, core) = (cpu / 4, cpu / 2 % 2);
            let folder = dir.path().join(format!("cpu{cpu}"));
            let files = [
                ("topology/physical_package_id", format!("{package}\n")),
                ("topology/core_id", format!("{core}\n")),
                ("cache/index0/size", "32K\n".to_owned()),
                ("cache/index0/shared_cpu_list", format!("{cpu}\n")),
                ("cache/index3/size", "32768K\n".to_owned()),
                ("cache/index3/shared_cpu_list", format!("{}-{}\n", 4 * package, 4 * package + 3)),
            ];
            for (path, text) in files {
                let path = folder.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
        }
        fs::create_dir_all(dir.path().join("cpu8")).unwrap();
        fs::create_dir_all(dir.path().join("cpufreq/topology")).unwrap();
        dir
    }

    #[test]
    fn a_core_of_two_threads_and_a_shared_cache_count_once() {
        let dir = machine();
        assert_eq!(cores_below(dir.path()), Some(4));
        assert_eq!(caches_below(dir.path()), Some(64 << 20));
        let empty = tempfile::tempdir().unwrap();
        assert_eq!((cores_below(empty.path()), caches_below(empty.path())), (None, None));
        assert_eq!(cores_below(&empty.path().join("none")), None);
    }
}
