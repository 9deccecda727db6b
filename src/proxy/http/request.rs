//! Determines the authority, host and route of a request (RFC 9110 section 7, RFC 9112 section 3.2, RFC 9113 section
//! 8.3.1).

mod authority;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, Version};

use crate::api::HttpMode;
use crate::proxy::control::snapshot::Snapshot;

use self::authority::Authority;
use super::h1::framing::{MAX_FIELDS, MAX_REQUEST_LINE};
use super::refusal::HttpRefusal;
use super::route::{Route, climbs};
use super::state::ConnectionState;

/// What to do with a valid request.
pub(super) enum Admission<'r> {
    /// Forward it.
    Forward {
        route: &'r Route,
        /// `host[:port]` as the client sent it.
        authority: HeaderValue,
        /// The port of the authority, or the one of the scheme.
        port: u16,
    },
    /// Answer with a redirect to this URI.
    Redirect(HeaderValue),
}

/// Checks a request from `connection` and finds its route. Fails with the refusal to answer with. Makes this request the
/// last of a connection that its host would no longer accept.
pub(super) fn admit<'r>(
    parts: &Parts,
    connection: &ConnectionState,
    snapshot: &'r Snapshot,
) -> Result<Admission<'r>, HttpRefusal> {
    if parts.method == Method::TRACE || parts.method == Method::CONNECT {
        return Err(HttpRefusal {
            status: StatusCode::METHOD_NOT_ALLOWED,
            reason: "this method is not supported",
        });
    }
    if parts.headers.len() > MAX_FIELDS {
        return Err(HttpRefusal {
            status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            reason: "too many header fields",
        });
    }
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    if target.len() > MAX_REQUEST_LINE {
        return Err(HttpRefusal {
            status: StatusCode::URI_TOO_LONG,
            reason: "the request target is too long",
        });
    }
    let path = parts.uri.path();
    if !target.starts_with('/') {
        return Err(HttpRefusal::bad_request("the request target is malformed"));
    }
    if climbs(path) {
        return Err(HttpRefusal::bad_request("the path contains a .. segment"));
    }

    let default_port = if connection.tls().is_some() { 443 } else { 80 };
    let written = authority_of(parts, default_port)?;
    let authority = parse(&written)?;
    let host = snapshot.host(&authority.host);
    let host = match connection.tls() {
        // Connections may be shared between names of one host only: only they share a TLS policy and a certificate
        // (RFC 9110 section 15.5.20).
        Some(tls) => host.filter(|host| host.name == tls.host.name).ok_or(HttpRefusal {
            status: StatusCode::MISDIRECTED_REQUEST,
            reason: "this connection is for a different host name",
        }),
        None => host.ok_or(not_served()),
    }?;

    if let Some(tls) = connection.tls()
        && !host.accepts(tls.version)
    {
        // The host raised its minimum version after this handshake. This request may have been in flight; it is the
        // last.
        connection.draining.set(true);
    }

    match (connection.tls(), snapshot.config.http) {
        (None, HttpMode::Redirect) => {
            let location = format!("https://{}{target}", authority.written_host);
            let location = HeaderValue::from_str(&location)
                .map_err(|_| HttpRefusal::bad_request("the request target is malformed"))?;
            return Ok(Admission::Redirect(location));
        }
        (None, HttpMode::Disabled) => return Err(not_served()),
        (None, HttpMode::Serve) | (Some(_), _) => {}
    }
    let route = host.routes.find(path).ok_or(HttpRefusal {
        status: StatusCode::NOT_FOUND,
        reason: "no route matches this path",
    })?;
    let port = authority.port.unwrap_or(default_port);
    Ok(Admission::Forward {
        route,
        authority: written,
        port,
    })
}

/// The effective authority: that of the request target, or else `Host`.
fn authority_of(parts: &Parts, default_port: u16) -> Result<HeaderValue, HttpRefusal> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(HttpRefusal::bad_request("multiple Host header fields"));
    }
    let of_target = parts.uri.authority().map(|authority| authority.as_str());
    match (of_target, host) {
        (None, None) => Err(HttpRefusal::bad_request("missing Host header field")),
        (None, Some(host)) => Ok(host.clone()),
        // HTTP/1.1 clients send Host even with a target in absolute form (RFC 9112 section 3.2).
        (Some(_), None) if parts.version != Version::HTTP_2 => {
            Err(HttpRefusal::bad_request("missing Host header field"))
        }
        (Some(target), host) => {
            if let Some(host) = host {
                let host = parse(host)?;
                let target = Authority::parse(target);
                let same = target.is_some_and(|target| target.same_as(&host, default_port));
                if parts.version == Version::HTTP_2 && !same {
                    return Err(HttpRefusal::bad_request(
                        ":authority and the Host header field differ",
                    ));
                }
            }
            HeaderValue::from_str(target)
                .map_err(|_| HttpRefusal::bad_request("the request's authority is malformed"))
        }
    }
}

fn parse(value: &HeaderValue) -> Result<Authority<'_>, HttpRefusal> {
    value
        .to_str()
        .ok()
        .and_then(Authority::parse)
        .ok_or(HttpRefusal::bad_request("malformed Host header field"))
}

const fn not_served() -> HttpRefusal {
    HttpRefusal {
        status: StatusCode::NOT_FOUND,
        reason: "unknown host name",
    }
}

#[cfg(test)]
mod tests;
