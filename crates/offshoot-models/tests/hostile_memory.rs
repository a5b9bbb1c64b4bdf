//! Hostile files and folders do not make the process grow. Alone in its file, because the system counts memory
//! by process.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![cfg(target_os = "linux")]

mod support;
use support::tiny::Tiny;
use support::{assert_one_line, hostile, hostile_folders, walk};

/// A line of `/proc/self/status`, in KiB.
fn status_kib(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").trim().parse().unwrap()
}

#[test]
fn hostile_files_take_little_memory() {
    let sound = [Tiny::smallest("llama").bytes(), Tiny::smallest("qwen2").bytes()];
    let cases = hostile::all();
    let folders = hostile_folders::all(100_000);
    let (resident, reserved) = (status_kib("VmHWM"), status_kib("VmPeak"));
    for bytes in &sound {
        walk(bytes).unwrap();
    }
    for case in &cases {
        let error = walk(&case.bytes).unwrap_err();
        assert_one_line(&error, case.name);
        assert!(error.to_string().contains(case.error), "{}: {error}", case.name);
    }
    for case in &folders {
        assert_one_line(&case.sections.walk().unwrap_err(), case.name);
    }
    let grown = status_kib("VmHWM") - resident;
    assert!(grown < 16 << 10, "{grown} KiB more resident at the peak");
    let grown = status_kib("VmPeak") - reserved;
    assert!(grown < 256 << 10, "{grown} KiB more reserved at the peak");
}
