//! A small HTTP client: redirects that keep the token at home, and patience with servers.

use super::config::{HttpLimits, ProxyChoice, StoreConfig, Token};
use super::{Event, Progress, Sha256Digest, StoreError};
use std::time::Duration;
use ureq::http::uri::{Scheme, Uri};
use ureq::http::{HeaderMap, header};
use ureq::tls::{RootCerts, TlsConfig};

const MAX_REDIRECTS: usize = 8;
const MAX_PAUSES: u32 = 100;

/// A client bound to one hub. The token goes to that hub's own address and to no other.
pub(super) struct Http {
    agent: ureq::Agent,
    home: Uri,
    token: Option<Token>,
    pub(super) limits: HttpLimits,
}

/// A response, after redirects.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: ureq::Body,
    pub(super) linked: Linked,
    /// The address without its query, which may hold a signature.
    pub(super) shown_url: String,
    at: Uri,
}

impl Reply {
    /// The address of the next page, if this is one of several (RFC 8288).
    ///
    /// # Errors
    /// [`StoreError::Network`] if that is no address, or one that would give up encryption.
    pub(super) fn next_page(&self) -> Result<Option<String>, StoreError> {
        let links =
            self.headers.get_all(header::LINK).iter().filter_map(|value| value.to_str().ok());
        let Some(target) = links.into_iter().find_map(next_link) else { return Ok(None) };
        let to = join(&self.at, target)?;
        as_safe(&self.at, &to)?;
        Ok(Some(to.to_string()))
    }
}

/// What the hub says of a file on the way to the server that holds it.
#[derive(Debug, Clone, Default)]
pub(super) struct Linked {
    pub(super) sha256: Option<Sha256Digest>,
    pub(super) size: Option<u64>,
    pub(super) commit: Option<String>,
}

/// A request that did not succeed, and whether to make it again.
pub(super) struct Failure {
    pub(super) error: StoreError,
    pub(super) again: Again,
}

/// Whether a failed request may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// It will not.
    Never,
    /// It may, if the server has answered before: without a route to it, another source is better.
    OnceReached,
    /// It may, after this pause if the server names one.
    After(Option<Duration>),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self { error, again: Again::Never }
    }
}

impl Http {
    pub(super) fn new(config: &StoreConfig) -> Result<Self, StoreError> {
        let home: Uri = config.hub_endpoint.parse().map_err(|e| {
            StoreError::Config(format!("HF_ENDPOINT `{}`: {e}", config.hub_endpoint))
        })?;
        let limits = config.limits;
        // The platform's verifier trusts what the machine trusts, and reads SSL_CERT_FILE.
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let mut builder = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("offshoot/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(limits.connect))
            .timeout_recv_response(Some(limits.response))
            .timeout_per_read(Some(limits.idle))
            .timeout_per_write(Some(limits.idle));
        if config.proxy == ProxyChoice::Direct {
            builder = builder.proxy(None);
        }
        let token = config.hub_token.clone().filter(|_| may_carry_secrets(&home));
        Ok(Self { agent: builder.build().new_agent(), home, token, limits })
    }

    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Makes a GET request and follows redirects; any status but a redirect is a reply.
    pub(super) fn get(&self, url: &str, extra: &[(&str, String)]) -> Result<Reply, Failure> {
        let mut at = parse_url(url, url)?;
        let mut linked = Linked::default();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(&at, extra)?;
            let (parts, body) = response.into_parts();
            linked.note(&parts.headers);
            let status = parts.status.as_u16();
            if matches!(status, 301 | 302 | 303 | 307 | 308) {
                at = redirected(&at, &parts.headers)?;
                continue;
            }
            return Ok(Reply {
                status,
                headers: parts.headers,
                body,
                linked,
                shown_url: shown(&at),
                at,
            });
        }
        Err(network(&at, format!("more than {MAX_REDIRECTS} redirects")).into())
    }

    fn request(
        &self,
        at: &Uri,
        extra: &[(&str, String)],
    ) -> Result<ureq::http::Response<ureq::Body>, Failure> {
        let mut request = self.agent.get(at.clone()).header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = self.token.as_ref().filter(|_| same_origin(at, &self.home)) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.reveal()));
        }
        for (name, value) in extra {
            request = request.header(*name, value);
        }
        request.call().map_err(|e| transport_failure(at, &e))
    }
}

impl Linked {
    fn note(&mut self, headers: &HeaderMap) {
        let sha256 = text(headers, "x-linked-etag").and_then(|e| e.trim_matches('"').parse().ok());
        let size = text(headers, "x-linked-size").and_then(|s| s.parse().ok());
        let commit = text(headers, "x-repo-commit").map(str::to_owned);
        self.sha256 = self.sha256.or(sha256);
        self.size = self.size.or(size);
        self.commit = self.commit.take().or(commit);
    }
}

/// A header's value, if it is text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Counts failures, pauses between tries, and knows when to give up.
pub(super) struct Patience<'a> {
    limits: HttpLimits,
    progress: &'a dyn Progress,
    in_a_row: u32,
    pauses: u32,
    reached: bool,
}

impl<'a> Patience<'a> {
    pub(super) fn new(limits: HttpLimits, progress: &'a dyn Progress) -> Self {
        Self { limits, progress, in_a_row: 0, pauses: 0, reached: false }
    }

    /// The server answered.
    pub(super) fn reached(&mut self) {
        self.reached = true;
    }

    /// Bytes were gained since the last failure.
    pub(super) fn gained(&mut self) {
        self.in_a_row = 0;
    }

    /// Returns after a pause if the request is worth making again, else hands back the error.
    pub(super) fn pause(&mut self, failure: Failure) -> Result<(), StoreError> {
        let asked = match failure.again {
            Again::After(pause) => pause,
            Again::OnceReached if self.reached => None,
            _ => return Err(failure.error),
        };
        self.in_a_row += 1;
        self.pauses += 1;
        let pause = asked.unwrap_or_else(|| self.backoff());
        let too_often = self.in_a_row > self.limits.retries || self.pauses > MAX_PAUSES;
        if too_often || pause > self.limits.longest_pause {
            return Err(failure.error);
        }
        self.progress.event(&Event::Retry { error: &failure.error, pause });
        self.sleep(pause)
    }

    fn backoff(&self) -> Duration {
        let doubled = self.limits.first_pause.saturating_mul(1 << (self.in_a_row - 1).min(16));
        doubled.min(self.limits.longest_pause)
    }

    fn sleep(&self, mut left: Duration) -> Result<(), StoreError> {
        const SLICE: Duration = Duration::from_millis(100);
        while !left.is_zero() {
            if self.progress.cancelled() {
                return Err(StoreError::Cancelled);
            }
            std::thread::sleep(left.min(SLICE));
            left = left.saturating_sub(SLICE);
        }
        Ok(())
    }
}

/// The failure of a status that is neither a success nor the hub's way of refusing a file.
pub(super) fn status_failure(reply: &Reply) -> Failure {
    let asked = text(&reply.headers, "retry-after").and_then(|s| s.trim().parse::<u64>().ok());
    let url = reply.shown_url.clone();
    match reply.status {
        429 => Failure {
            error: StoreError::RateLimited { url, retry_after_s: asked },
            again: Again::After(asked.map(Duration::from_secs)),
        },
        status => Failure {
            error: StoreError::Network { url, why: format!("the server answered HTTP {status}") },
            again: match status {
                408 | 500..=599 => Again::After(asked.map(Duration::from_secs)),
                _ => Again::Never,
            },
        },
    }
}

fn transport_failure(at: &Uri, error: &ureq::Error) -> Failure {
    use std::io::ErrorKind as K;
    let again = match error {
        ureq::Error::Io(e) => match e.kind() {
            K::InvalidData => Again::Never, // a TLS failure
            K::ConnectionReset
            | K::ConnectionAborted
            | K::BrokenPipe
            | K::UnexpectedEof
            | K::TimedOut => Again::After(None),
            // Refused, no route, or a name that does not resolve, which has no kind of its own.
            _ => Again::OnceReached,
        },
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            Again::OnceReached
        }
        ureq::Error::Timeout(_) => Again::After(None),
        _ => Again::Never,
    };
    Failure { error: network(at, error.to_string()), again }
}

fn redirected(from: &Uri, headers: &HeaderMap) -> Result<Uri, StoreError> {
    let location = text(headers, "location")
        .ok_or_else(|| network(from, "a redirect without a location".into()))?;
    let to = join(from, location)?;
    as_safe(from, &to)?;
    Ok(to)
}

/// Checks that whoever goes on from `from` to `to` stays with encryption.
fn as_safe(from: &Uri, to: &Uri) -> Result<(), StoreError> {
    match from.scheme() == Some(&Scheme::HTTPS) && to.scheme() != Some(&Scheme::HTTPS) {
        true => Err(network(from, format!("leads from https to {}", shown(to)))),
        false => Ok(()),
    }
}

/// The target of relation `next` among `<target>; rel="next", ...`.
fn next_link(links: &str) -> Option<&str> {
    let mut rest = links;
    while let Some((target, behind)) = rest.split_once('<').and_then(|(_, at)| at.split_once('>')) {
        let (parameters, further) = behind.split_at(behind.find('<').unwrap_or(behind.len()));
        let is_next = |parameter: &str| {
            let relations = parameter.trim().strip_prefix("rel=").unwrap_or_default();
            relations.trim_matches('"').split_ascii_whitespace().any(|relation| relation == "next")
        };
        if parameters.split([';', ',']).any(is_next) {
            return Some(target);
        }
        rest = further;
    }
    None
}

/// Resolves a redirect's location against the address that sent it.
fn join(base: &Uri, location: &str) -> Result<Uri, StoreError> {
    let scheme = base.scheme_str().unwrap_or("https");
    let authority = base.authority().map_or("", |a| a.as_str());
    let absolute = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.contains("://") {
        location.to_owned()
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    parse_url(&absolute, &shown(base))
}

fn parse_url(text: &str, shown: &str) -> Result<Uri, StoreError> {
    text.parse().map_err(|e| StoreError::Network {
        url: shown.to_owned(),
        why: format!("not an address ({e})"),
    })
}

fn network(at: &Uri, why: String) -> StoreError {
    StoreError::Network { url: shown(at), why }
}

/// The address without user, password and query, any of which may hold a secret.
fn shown(at: &Uri) -> String {
    let port = at.port().map_or(String::new(), |p| format!(":{p}"));
    let scheme = at.scheme_str().unwrap_or("https");
    format!("{scheme}://{}{port}{}", at.host().unwrap_or(""), at.path())
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port =
        |u: &Uri| u.port_u16().unwrap_or(if u.scheme() == Some(&Scheme::HTTP) { 80 } else { 443 });
    let host = |u: &Uri| u.host().map(str::to_ascii_lowercase);
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

/// True for https, and for this machine itself.
fn may_carry_secrets(to: &Uri) -> bool {
    to.scheme() == Some(&Scheme::HTTPS)
        || matches!(to.host(), Some("localhost" | "127.0.0.1" | "[::1]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn locations_resolve_as_the_standard_says() {
        // RFC 3986, section 5.2.
        let base = uri("https://h.example:8443/a/b?q=1");
        for (location, expected) in [
            ("https://o.example/x?y=z", "https://o.example/x?y=z"),
            ("//o.example/x", "https://o.example/x"),
            ("/x/y", "https://h.example:8443/x/y"),
            ("c", "https://h.example:8443/a/c"),
        ] {
            assert_eq!(join(&base, location).unwrap(), uri(expected), "{location}");
        }
    }

    #[test]
    fn the_next_page_is_the_link_of_that_relation() {
        for (link, next) in [
            (
                r#"<https://h.example/t?c=Zm9v%3D>; rel="next""#,
                Some("https://h.example/t?c=Zm9v%3D"),
            ),
            (r#"</a>; rel="prev", </t?c=1,2>;title="x"; rel=next"#, Some("/t?c=1,2")),
            (r#"</t?c=1>; rel="last next""#, Some("/t?c=1")),
            (r#"</t?c=1>; rel="prev""#, None),
            ("", None),
            ("</t", None),
        ] {
            assert_eq!(next_link(link), next, "{link}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let home = uri("https://hub.example");
        assert!(same_origin(&home, &uri("https://HUB.example:443/x")));
        for other in ["http://hub.example", "https://hub.example:444", "https://cdn.hub.example"] {
            assert!(!same_origin(&home, &uri(other)), "{other}");
        }
    }

    #[test]
    fn shown_addresses_hold_no_secrets_and_secrets_need_https() {
        let signed = uri("https://u:p@cdn.example:1/f?X-Signature=s");
        assert_eq!(shown(&signed), "https://cdn.example:1/f");
        assert!(may_carry_secrets(&uri("http://127.0.0.1:80/")));
        assert!(!may_carry_secrets(&uri("http://mirror.example/")));
    }

    #[test]
    fn a_redirect_from_https_to_http_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert("location", "http://o.example/x".parse().unwrap());
        assert!(redirected(&uri("https://h.example/"), &headers).is_err());
        assert!(redirected(&uri("http://h.example/"), &headers).is_ok());
    }
}
