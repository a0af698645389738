//! What is asked of every request before its call sees it: whom it is addressed to, that a write
//! is one that a foreign web page cannot send, and that it says nothing that would be ignored.

use std::{borrow::Cow, net::IpAddr};

use percent_encoding::percent_decode_str;
use poem::{
    Request,
    http::{
        Version,
        header::{CONTENT_TYPE, HOST, ORIGIN},
        status::StatusCode,
        uri::{Authority, Uri},
    },
};

use super::{
    body::{is_json, not_json},
    calls::Call,
    errors::Problem,
    fields::Invalid,
    names,
};

/// Whom requests may be addressed to.
///
/// A web page can make a browser send requests to this machine: under a name of the page's own that
/// was made to lead here, or as a form of another site. Where nothing asks who a caller is, the
/// names in a request are what tells such requests from others.
#[derive(Debug, Clone)]
pub struct Hosts {
    bind: IpAddr,
    allowed: Vec<String>,
}

impl Hosts {
    /// The address that is listened on, loopback, and these names in lower case.
    pub fn new(bind: IpAddr, allowed: Vec<String>) -> Self {
        Self { bind: bind.to_canonical(), allowed }
    }

    /// # Errors
    /// 400 for a request that names nobody, 421 for one that is meant for somebody else.
    pub fn check(&self, request: &Request) -> Result<(), Problem> {
        let in_headers = request.headers().get_all(HOST).iter();
        let mut names: Vec<&str> = in_headers.map(|name| name.to_str().unwrap_or("")).collect();
        names.extend(request.uri().authority().map(Authority::as_str));
        // Programs that still speak HTTP/1.0 are no browsers.
        if names.is_empty() && request.version() > Version::HTTP_10 {
            return Err(Problem::new(StatusCode::BAD_REQUEST, "the request has no Host header"));
        }
        if !names.iter().all(|name| self.knows(name)) {
            let detail = "this server is not meant by that Host; use its address or localhost, or \
                          add the name to VECMILL_ALLOWED_HOSTS";
            return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, detail));
        }
        Ok(())
    }

    /// # Errors
    /// 403 for a write that a page of another site makes.
    fn check_site(&self, request: &Request) -> Result<(), Problem> {
        let is_own = request.headers().get_all(ORIGIN).iter().all(|origin| {
            let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
            let site = origin.as_ref().and_then(Uri::authority);
            site.is_some_and(|site| self.knows(site.as_str()))
        });
        if request.method().is_safe() || is_own {
            return Ok(());
        }
        let detail = "web pages of other sites may not write here; add the name of the site to \
                      VECMILL_ALLOWED_HOSTS if it may";
        Err(Problem::new(StatusCode::FORBIDDEN, detail))
    }

    /// Whether this is a name of the server, with or without a port.
    fn knows(&self, name: &str) -> bool {
        let Ok(authority) = name.parse::<Authority>() else { return false };
        if name.contains('@') {
            return false;
        }
        let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let is_own_address = address.as_ref().is_ok_and(|address| {
            let address = address.to_canonical();
            address.is_loopback() || address == self.bind
        });
        let is_allowed = |allowed: &String| match (&address, allowed.parse::<IpAddr>()) {
            (Ok(address), Ok(allowed)) => address.to_canonical() == allowed.to_canonical(),
            _ => *allowed == host,
        };
        is_own_address || host == "localhost" || self.allowed.iter().any(is_allowed)
    }
}

/// # Errors
/// 415 for a write whose body says that it is not JSON, also where no body is wanted; 403 for one
/// that a page of another site makes; 422 for a query that holds what the call does not know.
pub fn check(request: &Request, call: &Call, hosts: Option<&Hosts>) -> Result<(), Problem> {
    let mut types = request.headers().get_all(CONTENT_TYPE).iter();
    if !request.method().is_safe() && !types.all(|kind| kind.to_str().is_ok_and(is_json)) {
        return Err(not_json());
    }
    if let Some(hosts) = hosts {
        hosts.check_site(request)?;
    }
    check_query(request.uri().query().unwrap_or_default(), call)
}

fn check_query(query: &str, call: &Call) -> Result<(), Problem> {
    let known: Vec<&str> = call.parameters.iter().map(String::as_str).collect();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let is_text = |part| decode(part).ok_or_else(|| not_text(name));
        let (name, _) = (is_text(name)?, is_text(value)?);
        if !known.contains(&name.as_str()) {
            return Err(Invalid::new(name.as_str(), names::unknown(&name, &known)).into());
        }
    }
    Ok(())
}

/// Part of a query as it was before it was encoded; none if it was no text.
fn decode(part: &str) -> Option<String> {
    let spaced: Cow<'_, str> = part.replace('+', " ").into();
    percent_decode_str(&spaced).decode_utf8().ok().map(Cow::into_owned)
}

fn not_text(name: &str) -> Problem {
    Invalid::new(name, "must be UTF-8, percent-encoded").into()
}
