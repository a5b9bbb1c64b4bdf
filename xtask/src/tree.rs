//! Reading the workspace: its packages from cargo, its files from git.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// All that the rules look at.
#[derive(Debug)]
pub struct Tree {
    /// The packages of the workspace.
    pub packages: Vec<Package>,
    /// The text files that git tracks or would track.
    pub files: Vec<TextFile>,
}

/// A package of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its folder, relative to the root, with `/` between parts.
    pub folder: String,
    /// Names of all packages it depends on: normal, build and test dependencies, on any platform.
    pub dependencies: Vec<String>,
}

/// A file whose bytes are UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// Its path relative to the root, with `/` between parts.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// The part of `cargo metadata`, format 1, that is needed.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
}

#[derive(Deserialize)]
struct MetadataPackage {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<MetadataDependency>,
}

#[derive(Deserialize)]
struct MetadataDependency {
    name: String,
}

impl Tree {
    /// Reads the workspace for which cargo runs this program.
    ///
    /// Asked at run time: a build folder shared by several checkouts may hold a program that was
    /// built in another one.
    ///
    /// # Errors
    /// If cargo does not run this program, cargo or git cannot be run there, or a file cannot be
    /// read.
    pub fn read() -> Result<Self> {
        let folder = std::env::var_os("CARGO_MANIFEST_DIR").context("run this through cargo")?;
        let root = Path::new(&folder).parent().context("xtask has no parent")?;
        Ok(Self { packages: read_packages(root)?, files: read_files(root)? })
    }

    /// The text of the file at `path`.
    ///
    /// # Errors
    /// If there is no such text file.
    pub fn text(&self, path: &str) -> Result<&str> {
        let file = self.files.iter().find(|file| file.path == path);
        Ok(&file.with_context(|| format!("there is no {path}"))?.text)
    }
}

fn read_packages(root: &Path) -> Result<Vec<Package>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let metadata: Metadata =
        serde_json::from_slice(&output(Command::new(cargo).args(arguments).current_dir(root))?)
            .context("cargo metadata printed something else than its format 1")?;
    let package = |package: MetadataPackage| {
        let folder = package.manifest_path.parent().context("a manifest without a folder")?;
        Ok(Package {
            name: package.name,
            folder: folder.strip_prefix(root)?.to_string_lossy().replace('\\', "/"),
            dependencies: package.dependencies.into_iter().map(|d| d.name).collect(),
        })
    };
    metadata.packages.into_iter().map(package).collect()
}

fn read_files(root: &Path) -> Result<Vec<TextFile>> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listing = output(Command::new("git").args(arguments).current_dir(root))?;
    let listing = String::from_utf8(listing).context("a file's name is not UTF-8")?;
    let mut files = Vec::new();
    for path in listing.split_terminator('\0') {
        let on_disk = root.join(path);
        if !on_disk.is_file() {
            continue; // deleted but not yet committed
        }
        let bytes = std::fs::read(&on_disk).with_context(|| format!("cannot read {path}"))?;
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(TextFile { path: path.to_string(), text });
        }
    }
    Ok(files)
}

/// What `command` prints, if it ends well.
fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {message}");
    Ok(output.stdout)
}
