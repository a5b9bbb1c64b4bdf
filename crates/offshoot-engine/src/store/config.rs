//! Where the store is and how it may reach out, read from the environment.

use super::StoreError;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything the store takes from its surroundings.
///
/// [`StoreConfig::from_env`] reads it from the environment; a program that embeds the store may
/// start from [`StoreConfig::at`] and set fields.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The folder of models, one folder each.
    pub models_dir: PathBuf,
    /// The file that remembers digests of files.
    pub digests_file: PathBuf,
    /// The hub's address, without a slash at the end.
    pub hub_endpoint: String,
    /// The hub's access token.
    pub hub_token: Option<Token>,
    /// The user's hub cache, which is only read.
    pub hub_cache: Option<PathBuf>,
    /// Whether the network may be used.
    pub network: Network,
    /// Which proxy requests go through.
    pub proxy: ProxyChoice,
    /// Commands that may be the Python package client, the first that answers is used.
    pub package_clients: Vec<Vec<OsString>>,
    /// Patience with the hub.
    pub limits: HttpLimits,
}

/// Whether the network may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// It may.
    Allowed,
    /// It may not, whatever a call asks for.
    Off,
}

/// Which proxy requests go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyChoice {
    /// The one named by `ALL_PROXY`, `HTTPS_PROXY` or `HTTP_PROXY`, save for `NO_PROXY` hosts.
    Environment,
    /// None.
    Direct,
}

/// How long to wait for a server, and how often to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// Longest wait for a connection.
    pub connect: Duration,
    /// Longest wait for a response to begin.
    pub response: Duration,
    /// Longest silence within a response.
    pub idle: Duration,
    /// Failures in a row, with no byte gained between them, after which to give up.
    pub retries: u32,
    /// Pause after the first failure; it doubles with each further one.
    pub first_pause: Duration,
    /// Longest pause; a server that asks for a longer one is not asked again.
    pub longest_pause: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            response: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            retries: 4,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(60),
        }
    }
}

/// A secret that does not show itself in debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Wraps a token; `None` if nothing but white space is given, or it cannot be sent.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let sendable = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        sendable.then(|| Self(text.to_owned()))
    }

    /// The secret.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl StoreConfig {
    /// A store at `folder`, self-contained: it does not look at the user's hub cache or token.
    pub fn at(folder: &Path) -> Self {
        Self {
            models_dir: folder.join("models"),
            digests_file: folder.join("digests.json"),
            hub_endpoint: "https://huggingface.co".into(),
            hub_token: None,
            hub_cache: None,
            network: Network::Allowed,
            proxy: ProxyChoice::Environment,
            package_clients: usual_package_clients(),
            limits: HttpLimits::default(),
        }
    }

    /// Reads the process's environment; see [`StoreConfig::from_lookup`].
    ///
    /// # Errors
    /// As [`StoreConfig::from_lookup`].
    pub fn from_env() -> Result<Self, StoreError> {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// Reads variables through `get`; empty ones count as unset.
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `OFFSHOOT_HOME` | models are kept in its `models` folder |
    /// | `XDG_DATA_HOME` | else in `offshoot/models` here, by default `~/.local/share` |
    /// | `XDG_CACHE_HOME` | digests are in `offshoot/digests.json` here, by default `~/.cache` |
    /// | `OFFSHOOT_OFFLINE`, `HF_HUB_OFFLINE` | `1`, `true`, `yes` or `on` switch the network off |
    /// | `HF_ENDPOINT` | a mirror of the hub |
    /// | `HF_TOKEN`, `HF_TOKEN_PATH` | the access token, or the file with it (`$HF_HOME/token`) |
    /// | `HF_HUB_CACHE`, `HF_HOME` | the hub cache (by default `~/.cache/huggingface/hub`) |
    ///
    /// # Errors
    /// [`StoreError::Config`] if no folder can be derived or `HF_ENDPOINT` is not an address.
    pub fn from_lookup(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, StoreError> {
        let env = Lookup(&get);
        let home = env.absolute("HOME").or_else(|| env.absolute("USERPROFILE"));
        let under_home = |tail: &str| home.as_ref().map(|h| h.join(tail));
        let own = env.path("OFFSHOOT_HOME");
        let data = env.absolute("XDG_DATA_HOME").or_else(|| under_home(".local/share"));
        let cache = env.absolute("XDG_CACHE_HOME").or_else(|| under_home(".cache"));
        let root = own.clone().or_else(|| data.map(|d| d.join("offshoot"))).ok_or_else(no_home)?;
        let digests = cache.as_ref().map(|c| c.join("offshoot")).unwrap_or_else(|| root.clone());
        let hub_home = env.path("HF_HOME").or_else(|| cache.map(|c| c.join("huggingface")));
        let token_file =
            env.path("HF_TOKEN_PATH").or_else(|| hub_home.as_ref().map(|h| h.join("token")));
        Ok(Self {
            models_dir: root.join("models"),
            digests_file: digests.join("digests.json"),
            hub_endpoint: endpoint(env.text("HF_ENDPOINT"))?,
            hub_token: env
                .text("HF_TOKEN")
                .and_then(|t| Token::new(&t))
                .or_else(|| token_file.and_then(|f| Token::new(&std::fs::read_to_string(f).ok()?))),
            hub_cache: env.path("HF_HUB_CACHE").or_else(|| hub_home.map(|h| h.join("hub"))),
            network: env.network(),
            ..Self::at(&root)
        })
    }
}

/// A view of the environment in which empty variables are unset.
struct Lookup<'a>(&'a dyn Fn(&str) -> Option<OsString>);

impl Lookup<'_> {
    fn raw(&self, name: &str) -> Option<OsString> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str) -> Option<String> {
        self.raw(name)?.into_string().ok()
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.raw(name).map(PathBuf::from)
    }

    /// The XDG specification has relative paths ignored.
    fn absolute(&self, name: &str) -> Option<PathBuf> {
        self.path(name).filter(|p| p.is_absolute())
    }

    fn network(&self) -> Network {
        let on = |name| {
            let value = self.text(name).unwrap_or_default().to_ascii_lowercase();
            matches!(value.as_str(), "1" | "true" | "yes" | "on")
        };
        if on("OFFSHOOT_OFFLINE") || on("HF_HUB_OFFLINE") { Network::Off } else { Network::Allowed }
    }
}

fn no_home() -> StoreError {
    StoreError::Config("there is no HOME to keep models in; set OFFSHOOT_HOME to a folder".into())
}

fn endpoint(given: Option<String>) -> Result<String, StoreError> {
    let Some(text) = given else { return Ok("https://huggingface.co".into()) };
    let text = text.trim().trim_end_matches('/');
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() => Ok(text.to_owned()),
        _ => Err(StoreError::Config(format!(
            "HF_ENDPOINT is `{text}`, which is not an address like https://huggingface.co"
        ))),
    }
}

fn usual_package_clients() -> Vec<Vec<OsString>> {
    let python = ["python3", "python"].map(|p| vec![p.into(), "-m".into(), "pip".into()]);
    let direct = ["pip3", "pip"].map(|p| vec![p.into()]);
    python.into_iter().chain(direct).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> Result<StoreConfig, StoreError> {
        StoreConfig::from_lookup(|name| {
            vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v))
        })
    }

    #[test]
    fn folders_follow_home_then_xdg_then_offshoots_own() {
        let plain = from(&[("HOME", "/h")]).unwrap();
        assert_eq!(plain.models_dir, Path::new("/h/.local/share/offshoot/models"));
        assert_eq!(plain.digests_file, Path::new("/h/.cache/offshoot/digests.json"));
        assert_eq!(plain.hub_cache.unwrap(), Path::new("/h/.cache/huggingface/hub"));
        let xdg = from(&[("HOME", "/h"), ("XDG_DATA_HOME", "/d"), ("XDG_CACHE_HOME", "/c")]);
        let xdg = xdg.unwrap();
        assert_eq!(xdg.models_dir, Path::new("/d/offshoot/models"));
        assert_eq!(xdg.digests_file, Path::new("/c/offshoot/digests.json"));
        assert_eq!(xdg.hub_cache.unwrap(), Path::new("/c/huggingface/hub"));
        let own = from(&[("HOME", "/h"), ("XDG_DATA_HOME", "/d"), ("OFFSHOOT_HOME", "/o")]);
        assert_eq!(own.unwrap().models_dir, Path::new("/o/models"));
        let relative = from(&[("HOME", "/h"), ("XDG_DATA_HOME", "d")]).unwrap();
        assert_eq!(relative.models_dir, Path::new("/h/.local/share/offshoot/models"));
    }

    #[test]
    fn without_any_home_the_error_says_what_to_set() {
        let error = from(&[("HOME", "")]).unwrap_err();
        assert!(error.to_string().contains("OFFSHOOT_HOME"), "{error}");
        assert_eq!(from(&[("OFFSHOOT_HOME", "/o")]).unwrap().models_dir, Path::new("/o/models"));
    }

    #[test]
    fn the_hubs_variables_are_honoured() {
        let c = from(&[
            ("HOME", "/h"),
            ("HF_ENDPOINT", "https://mirror.example/"),
            ("HF_TOKEN", "hf_secret\n"),
            ("HF_HOME", "/hf"),
        ])
        .unwrap();
        assert_eq!(c.hub_endpoint, "https://mirror.example");
        assert_eq!(c.hub_cache.as_deref(), Some(Path::new("/hf/hub")));
        assert_eq!(c.hub_token.as_ref().map(Token::reveal), Some("hf_secret"));
        assert!(!format!("{c:?}").contains("hf_secret"));
        let cache = from(&[("HOME", "/h"), ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/elsewhere")]);
        assert_eq!(cache.unwrap().hub_cache.as_deref(), Some(Path::new("/elsewhere")));
        assert!(from(&[("HOME", "/h"), ("HF_ENDPOINT", "mirror")]).is_err());
    }

    #[test]
    fn the_token_is_read_from_the_hubs_login_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let c = from(&[("HOME", "/h"), ("HF_HOME", dir.path().to_str().unwrap())]).unwrap();
        assert_eq!(c.hub_token.as_ref().map(Token::reveal), Some("hf_file"));
    }

    #[test]
    fn either_offline_variable_switches_the_network_off() {
        for (value, expected) in
            [("1", Network::Off), ("TRUE", Network::Off), ("0", Network::Allowed)]
        {
            for name in ["OFFSHOOT_OFFLINE", "HF_HUB_OFFLINE"] {
                let c = from(&[("HOME", "/h"), (name, value)]).unwrap();
                assert_eq!(c.network, expected, "{name}={value}");
            }
        }
    }
}
