//! The Hugging Face hub: listing a repository, choosing a file, and downloading it with resume.

use super::http::{Again, Failure, Http, Linked, Patience, Reply, status_failure, text};
use super::partial::{Partial, Promise};
use super::{Event, Progress, Sha256Digest, StoreConfig, StoreError};
use crate::error::one_line;
use offshoot_models::gguf::{PARTS_MAX, PartName};
use serde::Deserialize;
use std::collections::HashSet;
use std::io::Read;

/// Of a repository's list of files, all its pages together.
const MAX_LISTING_BYTES: u64 = 16 << 20;
/// Pages of a list of files; the hub gives a thousand files a page.
const MAX_PAGES: usize = 256;
/// Larger than any model file; stops a server that never ends.
const MAX_FILE_BYTES: u64 = 1 << 42;
const BUFFER_BYTES: usize = 256 << 10;

/// The hub at the configured endpoint.
pub(super) struct Hub<'a> {
    http: Http,
    endpoint: &'a str,
    progress: &'a dyn Progress,
}

/// A file of a repository.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) sha256: Option<Sha256Digest>,
}

/// The parts of a tree listing that matter here; the hub adds others.
#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    lfs: Option<TreeLfs>,
}

#[derive(Deserialize)]
struct TreeLfs {
    oid: String,
    size: u64,
}

/// A file to fetch: `file` of `repo` at `revision`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) repo: &'a str,
    pub(super) file: &'a str,
    pub(super) revision: &'a str,
}

impl<'a> Hub<'a> {
    pub(super) fn new(
        config: &'a StoreConfig,
        progress: &'a dyn Progress,
    ) -> Result<Self, StoreError> {
        Ok(Self { http: Http::new(config)?, endpoint: &config.hub_endpoint, progress })
    }

    /// The files of a repository, from its tree, which the hub gives page by page.
    pub(super) fn list(&self, repo: &str, revision: &str) -> Result<Vec<Listed>, StoreError> {
        let mut next = Some(format!(
            "{}/api/models/{repo}/tree/{}?recursive=true",
            self.endpoint,
            encode_segment(revision)
        ));
        let what = format!("{repo} at revision {revision}");
        let wrong = |why: String| {
            let url = format!("{}/{repo}", self.endpoint);
            StoreError::Network { url, why }
        };
        let mut patience = Patience::new(self.http.limits, self.progress);
        let (mut files, mut bytes, mut pages) = (Vec::new(), 0, 0);
        while let Some(url) = next.take() {
            if pages == MAX_PAGES {
                return Err(wrong(format!("its list of files has more than {MAX_PAGES} pages")));
            }
            pages += 1;
            let (body, further) = loop {
                match self.get_page(&url, &what, repo, MAX_LISTING_BYTES - bytes) {
                    Ok(page) => break page,
                    Err(failure) => patience.pause(failure)?,
                }
            };
            patience.gained();
            let tree: Vec<TreeEntry> = serde_json::from_slice(&body).map_err(|e| {
                wrong(format!("its list of files does not parse ({})", one_line(&e)))
            })?;
            // A name that a terminal would obey is no model's.
            let named = |entry: &TreeEntry| !entry.path.contains(char::is_control);
            let listed = tree.into_iter().filter(|entry| entry.kind == "file" && named(entry));
            files.extend(listed.map(TreeEntry::listed));
            bytes += body.len() as u64;
            next = further;
        }
        Ok(files)
    }

    /// A page of at most `most` bytes, and the address of the next one.
    fn get_page(
        &self,
        url: &str,
        what: &str,
        repo: &str,
        most: u64,
    ) -> Result<(Vec<u8>, Option<String>), Failure> {
        let reply = self.checked(self.http.get(url, &[])?, what, repo)?;
        let next = reply.next_page()?;
        let shown = reply.shown_url;
        let body = reply.body.into_with_config().limit(most).read_to_vec();
        let body = body.map_err(|e| Failure {
            error: StoreError::Network { url: shown, why: e.to_string() },
            again: Again::After(None),
        })?;
        Ok((body, next))
    }

    /// Continues `partial` until it holds the whole file; returns what the hub said of it.
    pub(super) fn download(
        &self,
        wanted: Wanted<'_>,
        promise: &Promise,
        partial: &mut Partial,
    ) -> Result<Linked, StoreError> {
        let file: Vec<String> = wanted.file.split('/').map(encode_segment).collect();
        let url = format!(
            "{}/{}/resolve/{}/{}",
            self.endpoint,
            wanted.repo,
            encode_segment(wanted.revision),
            file.join("/")
        );
        let mut patience = Patience::new(self.http.limits, self.progress);
        loop {
            let before = partial.len();
            match self.attempt(&url, wanted, promise, partial, &mut patience) {
                Ok(linked) => return Ok(linked),
                Err(failure) => {
                    if partial.len() > before {
                        patience.gained();
                    }
                    patience.pause(failure)?;
                }
            }
        }
    }

    fn attempt(
        &self,
        url: &str,
        wanted: Wanted<'_>,
        promise: &Promise,
        partial: &mut Partial,
        patience: &mut Patience<'_>,
    ) -> Result<Linked, Failure> {
        if promise.size.is_some_and(|size| size == partial.len()) {
            return Ok(Linked::default());
        }
        let range = resume_headers(partial)?;
        let reply = self.http.get(url, &range)?;
        patience.reached();
        let total = match reply.status {
            206 => self.continue_at(&reply, partial)?,
            416 if partial.len() > 0 => return Err(start_over(&reply, partial, "no such range")),
            _ => {
                let what = format!("{} in {} at {}", wanted.file, wanted.repo, wanted.revision);
                return self.whole(self.checked(reply, &what, wanted.repo)?, promise, partial);
            }
        };
        self.receive(reply, total, promise, partial)
    }

    /// Checks that a partial response carries on where the partial file ends.
    fn continue_at(&self, reply: &Reply, partial: &mut Partial) -> Result<Option<u64>, Failure> {
        let range = text(&reply.headers, "content-range").and_then(parse_content_range);
        match range {
            Some((start, total)) if start == partial.len() => Ok(total),
            _ => Err(start_over(reply, partial, "a range other than the one asked for")),
        }
    }

    /// Takes a whole response from the beginning.
    fn whole(
        &self,
        reply: Reply,
        promise: &Promise,
        partial: &mut Partial,
    ) -> Result<Linked, Failure> {
        partial.restart()?;
        partial.set_etag(text(&reply.headers, "etag").map(str::to_owned))?;
        let total = text(&reply.headers, "content-length").and_then(|v| v.trim().parse().ok());
        self.receive(reply, total, promise, partial)
    }

    /// Writes the body to the partial file. `total` is the size of the whole file, if announced.
    fn receive(
        &self,
        reply: Reply,
        total: Option<u64>,
        promise: &Promise,
        partial: &mut Partial,
    ) -> Result<Linked, Failure> {
        let expected = promise.size.or(reply.linked.size);
        if let (Some(expected), Some(total)) = (expected, total)
            && expected != total
        {
            partial.restart()?;
            return Err(wrong_size(&reply.shown_url, expected, total).into());
        }
        let total = expected.or(total);
        let url = reply.shown_url;
        let mut body = reply.body.into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            if self.progress.cancelled() {
                return Err(StoreError::Cancelled.into());
            }
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(cut(&url, &e.to_string())),
            };
            let len = partial.len() + n as u64;
            if len > total.unwrap_or(MAX_FILE_BYTES) {
                partial.restart()?;
                return Err(wrong_size(&url, total.unwrap_or(MAX_FILE_BYTES), len).into());
            }
            append(partial, &buffer[..n], total)?;
            self.progress.event(&Event::Bytes { done: partial.len(), total });
        }
        match total {
            Some(total) if partial.len() < total => {
                Err(cut(&url, &format!("the connection closed after {} bytes", partial.len())))
            }
            _ => Ok(reply.linked),
        }
    }

    /// Turns a status that is not a success into the failure it stands for.
    fn checked(&self, reply: Reply, what: &str, repo: &str) -> Result<Reply, Failure> {
        let code = text(&reply.headers, "x-error-code").unwrap_or("");
        let (url, what) = (reply.shown_url.clone(), what.to_owned());
        match (reply.status, code) {
            (200, _) => Ok(reply),
            // The hub answers 401 for repositories that do not exist, and says so in the code.
            (404 | 410, _) | (401 | 403, "RepoNotFound" | "EntryNotFound" | "RevisionNotFound") => {
                Err(StoreError::NotFound { what, url }.into())
            }
            (status @ (401 | 403), code) => {
                let hint = self.access_hint(code, repo);
                Err(StoreError::Denied { what, url, status, hint }.into())
            }
            _ => Err(status_failure(&reply)),
        }
    }

    fn access_hint(&self, code: &str, repo: &str) -> String {
        let accept = format!("accept the model's licence at {}/{repo}", self.endpoint);
        match (self.http.has_token(), code) {
            (false, _) => format!("set HF_TOKEN to an access token, and if need be {accept}"),
            (true, "GatedRepo") => format!("{accept} with the account of HF_TOKEN"),
            (true, _) => format!("check that HF_TOKEN is valid and may read it, or {accept}"),
        }
    }
}

impl TreeEntry {
    fn listed(self) -> Listed {
        let size = self.lfs.as_ref().map_or(self.size, |lfs| lfs.size);
        let sha256 = self.lfs.and_then(|lfs| lfs.oid.trim_start_matches("sha256:").parse().ok());
        Listed { path: self.path, size, sha256 }
    }
}

/// Asks for the rest of the file, if the bytes so far can be told to belong to it.
fn resume_headers(partial: &mut Partial) -> Result<Vec<(&'static str, String)>, StoreError> {
    if partial.len() == 0 {
        return Ok(Vec::new());
    }
    let range = ("range", format!("bytes={}-", partial.len()));
    if partial.is_of_known_digest() {
        // The digest is checked at the end, so a server's own name for the version adds nothing,
        // and servers of one file do not agree on it.
        return Ok(vec![range]);
    }
    match partial.etag().filter(|etag| etag.starts_with('"')).map(str::to_owned) {
        Some(etag) => Ok(vec![range, ("if-range", etag)]),
        None => partial.restart().map(|()| Vec::new()),
    }
}

/// Forgets a partial file that the server will not continue, and asks for another try.
fn start_over(reply: &Reply, partial: &mut Partial, why: &str) -> Failure {
    if let Err(error) = partial.restart() {
        return error.into();
    }
    let why = format!("the server answered with {why}; starting over");
    let error = StoreError::Network { url: reply.shown_url.clone(), why };
    Failure { error, again: Again::After(None) }
}

fn append(partial: &mut Partial, bytes: &[u8], total: Option<u64>) -> Result<(), StoreError> {
    partial.append(bytes).map_err(|error| match error {
        StoreError::DiskFull { path, .. } => {
            let needed = total.map(|total| total.saturating_sub(partial.len()));
            StoreError::DiskFull { path, needed }
        }
        other => other,
    })
}

fn cut(url: &str, why: &str) -> Failure {
    let error = StoreError::Network { url: url.to_owned(), why: why.to_owned() };
    Failure { error, again: Again::After(None) }
}

fn wrong_size(url: &str, expected: u64, got: u64) -> StoreError {
    StoreError::Verification {
        what: url.to_owned(),
        expected: format!("{expected} bytes"),
        got: format!("{got} bytes"),
    }
}

/// The start and the total of `bytes START-END/TOTAL`.
fn parse_content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((start.parse().ok()?, total))
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
fn encode_segment(segment: &str) -> String {
    let mut out = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Picks the model file among a repository's files: the only GGUF file, else the only `Q4_K_M`; where
/// none is whole, the same of those in parts, of which it gives the first.
///
/// # Errors
/// [`StoreError::Choice`] with the candidates, if that does not settle it.
pub(super) fn choose<'f>(
    repo: &str,
    files: impl Iterator<Item = &'f str>,
) -> Result<&'f str, StoreError> {
    let lower = |f: &str| f.to_ascii_lowercase();
    let gguf: Vec<&str> = files.filter(|f| lower(f).ends_with(".gguf")).collect();
    let models = || gguf.iter().copied().filter(|f| !lower(f).contains("mmproj"));
    let whole: Vec<&str> = models().filter(|f| !is_split_part(f)).collect();
    let is_first = |f: &&str| match first_part(f) {
        Some(first) => first == **f && files_of(repo, f).is_ok_and(|all| holds(&gguf, &all)),
        // One of one is the whole.
        None => is_split_part(f) && part_of(f).is_some(),
    };
    let in_parts: Vec<&str> = models().filter(is_first).collect();
    let candidates = if whole.is_empty() { &in_parts } else { &whole };
    let usual: Vec<&str> =
        candidates.iter().copied().filter(|f| lower(f).contains("q4_k_m")).collect();
    let why = match (candidates.as_slice(), usual.as_slice()) {
        ([one], _) | (_, [one]) => return Ok(one),
        ([], _) if gguf.is_empty() => {
            "it holds no .gguf file; pick a repository that does, or download it whole with the \
             hub's own tools, in whose cache it is found"
        }
        ([], _) => {
            "its .gguf files are no language models, or parts of some whose other parts it lacks; \
             pick another repository"
        }
        _ => "it holds several .gguf files",
    };
    let choices = whole.iter().chain(&in_parts).map(|&f| f.to_owned()).collect();
    Err(StoreError::Choice { repo: repo.to_owned(), why: why.to_owned(), choices })
}

/// Whether all of `wanted` are among `files`.
fn holds(files: &[&str], wanted: &[String]) -> bool {
    let files: HashSet<&str> = files.iter().copied().collect();
    wanted.iter().all(|file| files.contains(file.as_str()))
}

/// What the name of `file` says of the model that it is a part of, and the folder before the name.
fn part_of(file: &str) -> Option<(&str, PartName<'_>)> {
    let name = file.rfind('/').map_or(0, |slash| slash + 1);
    Some((&file[..name], PartName::parse(&file[name..])?))
}

/// The first part of the model that `file` is one of several parts of.
pub(super) fn first_part(file: &str) -> Option<String> {
    let (folder, part) = part_of(file).filter(|(_, part)| part.count > 1)?;
    Some(format!("{folder}{}", PartName { number: 0, ..part }))
}

/// The files of the model of `repo` that `file` is, or is a part of, in order.
///
/// # Errors
/// [`StoreError::Choice`] if it would be of more parts than are loaded.
pub(super) fn files_of(repo: &str, file: &str) -> Result<Vec<String>, StoreError> {
    match part_of(file) {
        Some((_, part)) if part.count > PARTS_MAX => {
            let why = format!("{file}: a model in more than {PARTS_MAX} parts is not loaded");
            Err(StoreError::Choice { repo: repo.to_owned(), why, choices: Vec::new() })
        }
        Some((folder, part)) => {
            let name = |number| format!("{folder}{}", PartName { number, ..part });
            Ok((0..part.count).map(name).collect())
        }
        None => Ok(vec![file.to_owned()]),
    }
}

/// True for `name-00001-of-00003.gguf`, with any number of digits.
fn is_split_part(file: &str) -> bool {
    let stem = &file[..file.len() - ".gguf".len()];
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    stem.rsplit_once("-of-")
        .is_some_and(|(head, total)| number(total) && head.rsplit('-').next().is_some_and(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_gguf_or_the_only_q4_k_m_is_chosen() {
        let pick = |files: &[&str]| choose("o/r", files.iter().copied()).map(str::to_owned);
        assert_eq!(pick(&["README.md", "a.Q8_0.gguf"]).unwrap(), "a.Q8_0.gguf");
        assert_eq!(pick(&["a.Q8_0.gguf", "a-q4_k_m.gguf"]).unwrap(), "a-q4_k_m.gguf");
        assert_eq!(pick(&["a.gguf", "mmproj-a.gguf"]).unwrap(), "a.gguf");
        assert_eq!(pick(&["a.gguf", "b-00001-of-00002.gguf"]).unwrap(), "a.gguf");
    }

    #[test]
    fn an_open_choice_lists_the_files_and_how_to_name_one() {
        let files = ["a.Q8_0.gguf", "a.Q5_0.gguf"];
        let error = choose("o/r", files.into_iter()).unwrap_err().to_string();
        assert!(error.contains("hf:o/r/a.Q8_0.gguf"), "{error}");
        assert!(error.contains("a.Q5_0.gguf"), "{error}");
        let none = choose("o/r", ["model.safetensors"].into_iter()).unwrap_err().to_string();
        assert!(none.contains("no .gguf file"), "{none}");
        let parts = ["m-00001-of-00002.gguf", "n-00002-of-00002.gguf", "o-1-of-1.gguf"];
        let parts = choose("o/r", parts.into_iter()).unwrap_err().to_string();
        assert!(parts.contains("other parts it lacks"), "{parts}");
    }

    #[test]
    fn a_model_in_parts_is_chosen_where_none_is_whole() {
        let pick = |files: &[&str]| choose("o/r", files.iter().copied()).map(str::to_owned);
        let m = ["d/m-00002-of-00002.gguf", "d/m-00001-of-00002.gguf"];
        assert_eq!(pick(&m).unwrap(), m[1]);
        assert_eq!(pick(&["m-00001-of-00001.gguf"]).unwrap(), "m-00001-of-00001.gguf");
        let q4 = "m-q4_k_m-00001-of-00001.gguf";
        assert_eq!(pick(&[m[0], m[1], q4]).unwrap(), q4);
        assert_eq!(pick(&[m[0], m[1], "a.gguf"]).unwrap(), "a.gguf");
        let open = pick(&[m[0], m[1], "m-00001-of-00001.gguf"]).unwrap_err().to_string();
        assert!(open.contains(m[1]) && !open.contains(m[0]), "{open}");
        assert_eq!(first_part(m[0]).as_deref(), Some(m[1]));
        assert_eq!(first_part("m-00001-of-00001.gguf"), None);
        assert_eq!(files_of("o/r", m[0]).unwrap(), [m[1], m[0]]);
        let many = files_of("o/r", "m-00001-of-99999.gguf").unwrap_err().to_string();
        assert!(many.contains("more than 1024 parts"), "{many}");
    }

    #[test]
    fn content_ranges_parse_or_do_not() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, None)));
        for bad in ["", "bytes", "bytes */10", "items 1-2/3", "bytes a-9/10", "bytes 1-2/x"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn segments_are_percent_encoded() {
        assert_eq!(encode_segment("refs/pr/1 é"), "refs%2Fpr%2F1%20%C3%A9");
        assert_eq!(encode_segment("a-b_c.d~1"), "a-b_c.d~1");
    }
}
