//! The certificates of the farms under test, and the authority that their clients trust.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::scratch;

type Authority = CertifiedIssuer<'static, KeyPair>;

static AUTHORITY: LazyLock<(Authority, PathBuf)> = LazyLock::new(|| {
    let authority = authority("the tests");
    let file = scratch("authority").join("ca.crt");
    std::fs::write(&file, authority.pem()).expect("written");
    (authority, file)
});

/// The authority that every client of the tests trusts, and no other, as a PEM file.
pub fn authority_file() -> &'static Path {
    &AUTHORITY.1
}

/// Certificate and key in PEM, valid for whole years, signed by the authority that the clients trust.
pub fn certificate(hostnames: &[&str], years: Range<i32>) -> (String, String) {
    signed_by(&AUTHORITY.0, hostnames, years)
}

/// The same, signed by an authority that nobody trusts.
pub fn certificate_of_a_stranger(hostnames: &[&str]) -> (String, String) {
    signed_by(&authority("a stranger"), hostnames, 2000..2100)
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("authority of {name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed")
}

fn signed_by(authority: &Authority, hostnames: &[&str], years: Range<i32>) -> (String, String) {
    let names: Vec<String> = hostnames.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("DNS names");
    params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
    params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    (certificate.pem(), key.serialize_pem())
}
