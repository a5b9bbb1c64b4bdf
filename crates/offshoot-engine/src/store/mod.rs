//! Where models live on this machine, and how they get here.
//!
//! A user names a model in one of three ways ([`ModelRef`]); [`Store::resolve`] turns the name
//! into a file, pulling it first if it is missing and may be pulled. What was pulled is verified
//! against a size and a SHA-256 promised beforehand, and moved into place whole, so a process
//! stopped at any point leaves a model absent, unfinished or ready. Nothing here prints: a caller
//! that wants to show progress passes a [`Progress`].
//!
//! ```no_run
//! use offshoot_engine::store::{PullPolicy, Quiet, Store};
//!
//! let store = Store::from_env()?;
//! let model = store.resolve(&"smollm2".parse()?, PullPolicy::Allow, &Quiet)?;
//! let file = std::fs::File::open(&model.path);
//! # Ok::<(), offshoot_engine::store::StoreError>(())
//! ```

mod catalogue;
mod config;
mod digests;
mod error;
mod http;
mod hub;
mod hub_cache;
mod layout;
mod partial;
mod progress;
mod pull;
mod pypi;
mod reference;
mod sha256;

pub use catalogue::{Catalogue, CatalogueModel, ModelContext, PypiPart, Source};
pub use config::{HttpLimits, Network, ProxyChoice, StoreConfig, Token};
pub use digests::FileDigests;
pub(crate) use digests::{hash, joined};
pub use error::{StoreError, StoreErrorKind};
pub(crate) use layout::write_whole;
pub use layout::{Entry, EntryState, FurtherFile, Manifest};
pub use progress::{Event, Progress, Quiet};
pub use reference::{HubRef, ModelRef};
pub use sha256::Sha256Digest;

use hub_cache::HubCache;
use layout::Layout;
use offshoot_models::gguf::PartName;
use pull::Job;
use std::path::{Path, PathBuf};

/// The models of this machine.
#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
    catalogue: Catalogue,
    layout: Layout,
    digests: FileDigests,
}

/// Whether resolving a model may fetch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// It may, unless the store's [`Network`] is off.
    Allow,
    /// It may not: only what is on this machine counts.
    Offline,
}

/// A model on this machine: a file or a Hugging Face folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedModel {
    /// The name in full: a catalogue name, `hf:org/repo` with or without a file, the file's stem,
    /// or the folder's name.
    pub name: String,
    /// The file, the first one of a model in parts, or the folder.
    pub path: PathBuf,
    /// Whose file it is.
    pub origin: Origin,
    /// The licence of the weights, if known.
    pub licence: Option<String>,
    /// The file's SHA-256, where it is known without reading the file and is the whole model's.
    pub sha256: Option<Sha256Digest>,
}

/// Whose file a resolved model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The user's, named by its path.
    File,
    /// The store's.
    Store,
    /// The hub cache's, which the store only reads.
    HubCache,
}

impl Store {
    /// Opens a store with the built-in catalogue. Touches no file until a model is asked for.
    ///
    /// # Errors
    /// [`StoreError::Catalogue`], which a test rules out for the built-in one.
    pub fn open(config: StoreConfig) -> Result<Self, StoreError> {
        Ok(Self::with_catalogue(config, Catalogue::built_in()?))
    }

    /// Opens the store that the environment describes; see [`StoreConfig::from_lookup`].
    ///
    /// # Errors
    /// [`StoreError::Config`] if the environment gives no place to keep models.
    pub fn from_env() -> Result<Self, StoreError> {
        Self::open(StoreConfig::from_env()?)
    }

    /// Opens a store with another catalogue.
    pub fn with_catalogue(config: StoreConfig, catalogue: Catalogue) -> Self {
        let layout = Layout::new(config.models_dir.clone());
        let digests = FileDigests::open(&config.digests_file);
        Self { config, catalogue, layout, digests }
    }

    /// The names this store knows how to pull.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The memory of file digests.
    pub fn digests(&self) -> &FileDigests {
        &self.digests
    }

    /// Finds the file of a model, pulling it if it is missing and `policy` allows.
    ///
    /// Looks in the store, then in the user's hub cache, then at the model's sources. Two calls
    /// for one missing model, in one process or two, pull it once: the second waits.
    ///
    /// # Errors
    /// Any [`StoreError`]; [`StoreError::Offline`] if the model would have to be pulled and may
    /// not.
    pub fn resolve(
        &self,
        model: &ModelRef,
        policy: PullPolicy,
        progress: &dyn Progress,
    ) -> Result<ResolvedModel, StoreError> {
        match model {
            ModelRef::File(path) => resolve_file(path),
            ModelRef::Named(name) => self.resolve_name(name, policy, progress),
            ModelRef::Hub(hub) => self.resolve_hub(hub, policy, progress),
        }
    }

    /// Makes sure that a model is on this machine; what [`Store::resolve`] does, but a path is an
    /// error because there is nothing to pull.
    ///
    /// # Errors
    /// As [`Store::resolve`], and [`StoreError::Reference`] for a path.
    pub fn pull(
        &self,
        model: &ModelRef,
        progress: &dyn Progress,
    ) -> Result<ResolvedModel, StoreError> {
        if let ModelRef::File(path) = model {
            return Err(StoreError::Reference {
                text: path.display().to_string(),
                why: "it is a path, and only a catalogue name or a hub reference can be pulled"
                    .into(),
            });
        }
        self.resolve(model, PullPolicy::Allow, progress)
    }

    /// Everything the store holds, ready or not, sorted by name.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the store's folder exists and cannot be listed.
    pub fn list(&self) -> Result<Vec<Entry>, StoreError> {
        self.layout.list()
    }

    /// What the store holds under a name as [`Store::list`] gives it.
    ///
    /// # Errors
    /// [`StoreError::NotInstalled`] if that is nothing.
    pub fn show(&self, name: &str) -> Result<Entry, StoreError> {
        let name = self.proper_name(name);
        self.layout.entry(&name).ok_or_else(|| self.not_installed(&name))
    }

    /// Removes a model, or what an unfinished pull of it left, and says what it was. Any part of a
    /// model in parts stands for the whole. Waits for a pull that is running.
    ///
    /// # Errors
    /// [`StoreError::NotInstalled`] if there is nothing of that name, [`StoreError::Io`].
    pub fn remove(&self, name: &str) -> Result<Entry, StoreError> {
        let name = self.proper_name(name);
        let _lock = match self.layout.entry(&name) {
            Some(_) => self.layout.lock(&name, &Quiet)?,
            None => return Err(self.not_installed(&name)),
        };
        let entry = self.layout.entry(&name).ok_or_else(|| self.not_installed(&name))?;
        self.layout.remove(&name)?;
        Ok(entry)
    }

    /// The name that a model stands under here: the catalogue's spelling, or that of the first
    /// part.
    fn proper_name(&self, name: &str) -> String {
        // Older versions kept a part by itself under its own name.
        if self.layout.entry(name).is_some() {
            return name.to_owned();
        }
        match (self.catalogue.get(name), name.parse()) {
            (Some(model), _) => model.name.clone(),
            (None, Ok(ModelRef::Hub(hub))) => hub.of_first_part().to_string(),
            _ => name.to_owned(),
        }
    }

    fn not_installed(&self, name: &str) -> StoreError {
        let store = self.layout.root().to_owned();
        let here = self.layout.list().unwrap_or_default().into_iter().map(|entry| entry.name);
        StoreError::NotInstalled { name: name.to_owned(), nearest: nearest(name, here), store }
    }

    fn may_pull(&self, policy: PullPolicy) -> bool {
        policy == PullPolicy::Allow && self.config.network == Network::Allowed
    }

    fn offline(&self, name: String) -> StoreError {
        let root = Some(self.layout.root().to_owned());
        StoreError::Offline {
            name,
            looked: root.into_iter().chain(self.config.hub_cache.clone()).collect(),
        }
    }

    /// The ready model of this name in the store.
    fn installed(&self, name: &str) -> Option<ResolvedModel> {
        self.layout.ready(name).map(|(path, manifest)| in_store(path, manifest))
    }

    fn resolve_name(
        &self,
        name: &str,
        policy: PullPolicy,
        progress: &dyn Progress,
    ) -> Result<ResolvedModel, StoreError> {
        let Some(model) = self.catalogue.get(name) else { return Err(self.unknown(name)) };
        if let Some(found) = self.installed(&model.name) {
            return Ok(found);
        }
        if let Some(path) = self.cached_by_digest(model, progress) {
            return Ok(ResolvedModel {
                name: model.name.clone(),
                path,
                origin: Origin::HubCache,
                licence: Some(model.licence.clone()),
                sha256: Some(model.sha256),
            });
        }
        if !self.may_pull(policy) {
            return Err(self.offline(model.name.clone()));
        }
        self.pull_job(&Job::of_catalogue(model), progress)
    }

    /// A file of the hub cache that is this model, byte for byte.
    fn cached_by_digest(&self, model: &CatalogueModel, progress: &dyn Progress) -> Option<PathBuf> {
        let cache = HubCache::new(self.config.hub_cache.as_deref()?);
        let is_it = |path: &Path, promised: Sha256Digest| {
            self.digests.sha256_of(path, progress).is_ok_and(|found| found == promised)
        };
        model.sources.iter().find_map(|source| match source {
            Source::Hub { repo, file, .. } => {
                cache.file_of_digest(repo, file, model.size, model.sha256, is_it)
            }
            Source::Pypi { .. } => None,
        })
    }

    fn unknown(&self, name: &str) -> StoreError {
        let known: Vec<String> = self.catalogue.models().iter().map(|m| m.name.clone()).collect();
        let nearest = nearest(name, known.iter().cloned());
        StoreError::UnknownName { name: name.to_owned(), nearest, known }
    }

    fn resolve_hub(
        &self,
        hub: &HubRef,
        policy: PullPolicy,
        progress: &dyn Progress,
    ) -> Result<ResolvedModel, StoreError> {
        let hub = &hub.of_first_part();
        let local = match &hub.file {
            Some(_) => self.hub_file_here(hub),
            None => self.hub_choice_here(hub),
        };
        if let Some(found) = local {
            return Ok(found);
        }
        if !self.may_pull(policy) {
            return Err(self.offline(hub.to_string()));
        }
        self.pull_hub(hub, progress)
    }

    /// The referenced file in the store or the hub cache.
    fn hub_file_here(&self, hub: &HubRef) -> Option<ResolvedModel> {
        let name = hub.to_string();
        if let Some(found) = self.installed(&name) {
            return Some(found);
        }
        let cache = HubCache::new(self.config.hub_cache.as_deref()?);
        let files = hub::files_of(&hub.repo, hub.file.as_deref()?).ok()?;
        let paths = files.iter().map(|file| cache.file(&hub.repo, file, hub.revision()));
        let path = paths.collect::<Option<Vec<_>>>()?.into_iter().next()?;
        Some(ResolvedModel { name, path, origin: Origin::HubCache, licence: None, sha256: None })
    }

    /// The file that would be chosen among those of the repository that are here already.
    fn hub_choice_here(&self, hub: &HubRef) -> Option<ResolvedModel> {
        let entries = self.layout.list().ok()?;
        let ready = entries.into_iter().filter(|e| matches!(e.state, EntryState::Ready { .. }));
        let mut files: Vec<String> = ready
            .filter_map(|entry| match entry.name.parse::<ModelRef>().ok()? {
                ModelRef::Hub(h) if h.repo == hub.repo && h.revision == hub.revision => {
                    hub::files_of(&h.repo, &h.file?).ok()
                }
                _ => None,
            })
            .flatten()
            .collect();
        if let Some(root) = self.config.hub_cache.as_deref() {
            files.extend(HubCache::new(root).files(&hub.repo, hub.revision()));
        }
        files.sort();
        files.dedup();
        if !files.iter().any(|file| file.to_ascii_lowercase().ends_with(".gguf")) {
            return self.hub_folder_here(hub);
        }
        let file = hub::choose(&hub.repo, files.iter().map(String::as_str)).ok()?;
        self.hub_file_here(&hub.with_file(file))
    }

    /// The repository itself, if the hub cache has its model whole.
    fn hub_folder_here(&self, hub: &HubRef) -> Option<ResolvedModel> {
        let cache = HubCache::new(self.config.hub_cache.as_deref()?);
        let path = cache.snapshot(&hub.repo, hub.revision())?;
        let weights = ["model.safetensors", "model.safetensors.index.json"];
        let whole = is_model_folder(&path) && weights.iter().any(|file| path.join(file).is_file());
        whole.then(|| ResolvedModel {
            name: hub.to_string(),
            path,
            origin: Origin::HubCache,
            licence: None,
            sha256: None,
        })
    }
}

/// The one of `names` that `name` was probably meant to be.
fn nearest(name: &str, names: impl Iterator<Item = String>) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let score = |name: &String| strsim::jaro_winkler(&lower, &name.to_ascii_lowercase());
    let nearest = names.max_by(|a, b| score(a).total_cmp(&score(b)));
    nearest.filter(|name| score(name) > 0.7)
}

/// Whether a Hugging Face model lies in the folder at `path`.
fn is_model_folder(path: &Path) -> bool {
    path.join("config.json").is_file()
}

fn resolve_file(path: &Path) -> Result<ResolvedModel, StoreError> {
    let missing = |why: String| StoreError::NoSuchFile { path: path.to_owned(), why };
    let metadata = std::fs::metadata(path).map_err(|e| missing(e.to_string()))?;
    let name = if is_model_folder(path) {
        let whole = path.canonicalize().map_err(|e| missing(e.to_string()))?;
        whole.file_name().map(|name| name.to_string_lossy().into_owned())
    } else if metadata.is_file() {
        let part = path.file_name().and_then(|name| PartName::parse(name.to_str()?));
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        part.map(|part| part.stem.to_owned()).or(stem)
    } else {
        return Err(missing("is neither a file nor a folder with a config.json".into()));
    };
    Ok(ResolvedModel {
        name: name.unwrap_or_else(|| "model".to_owned()),
        path: path.to_owned(),
        origin: Origin::File,
        licence: None,
        sha256: None,
    })
}

fn in_store(path: PathBuf, manifest: Manifest) -> ResolvedModel {
    ResolvedModel {
        name: manifest.name,
        path,
        origin: Origin::Store,
        licence: manifest.licence,
        sha256: manifest.more.is_empty().then_some(manifest.sha256),
    }
}
