//! `tlsfarm probe`: checks whether a session that one proxy issued is resumed by every proxy.
//!
//! It gets a session from each proxy, offers it to each proxy, and reports a matrix for every host and mechanism. A
//! single-use session is offered a second time and must not be resumed then. Any TLS server can be probed, not only
//! farms.

mod error;
mod exchange;
mod kept;
mod matrix;
mod output;
mod replay;
mod round;
mod session;
mod sighting;
mod target;
#[cfg(test)]
mod tests;
mod text;
mod watch;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use http::uri::PathAndQuery;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

pub use error::ProbeError;
pub use exchange::{Failure, HandshakeAnswer};
pub use kept::Earlier;
pub use matrix::{Counts, FailedAt, Matrix, Trial, TrialOutcome};
pub use round::Tally;
pub use session::Mechanism;
pub use target::TargetError;

use crate::api::Duration;
use exchange::Exchanger;
use output::{Output, Style};
use session::Clients;
use target::{ClusterTargets, ServerAddress, TargetFarm, TargetHost, Targets, unready, why_nothing};

/// Options of `tlsfarm probe`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct ProbeArgs {
    /// Farms to probe. Default: every farm in the namespace
    #[arg(value_name = "FARM")]
    farms: Vec<String>,

    /// Namespace of the farms; repeat for several. Default: the namespace of the kubeconfig context
    #[arg(long = "namespace", short, value_name = "NAMESPACE", value_delimiter = ',')]
    namespaces: Vec<String>,

    /// Probe the farms in all namespaces
    #[arg(long, short = 'A', conflicts_with = "namespaces")]
    all_namespaces: bool,

    /// Kubeconfig context. Default: the current context, or the in-cluster configuration
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

    /// Probe this server instead of a farm's proxies, without using a cluster; repeat for several. A name is resolved once,
    /// and each of its addresses is probed. Default port: 443
    #[arg(
        long = "address",
        value_name = "HOST:PORT",
        conflicts_with_all = ["farms", "namespaces", "all_namespaces", "context", "allow_empty"]
    )]
    addresses: Vec<ServerAddress>,

    /// Server name to send (SNI); repeat for several. Default: the first host name of each host of the farm, or the
    /// name given by --address
    #[arg(long = "server-name", value_name = "NAME", value_parser = server_name)]
    server_names: Vec<ServerName<'static>>,

    /// Resumption mechanism; repeat for several. Default: all that the farm's hosts offer, or tickets with --address
    #[arg(
        long = "mechanism",
        visible_alias = "mechanisms",
        value_name = "MECHANISM",
        value_enum,
        value_delimiter = ','
    )]
    mechanisms: Vec<Mechanism>,

    /// Path to request with GET
    #[arg(long, default_value = "/", value_parser = path)]
    path: PathAndQuery,

    /// Verify server certificates against the CA certificates in this PEM file. Default: accept any certificate (the
    /// probe sends no secrets)
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Time limit for one connection, from its first packet to the end of the response
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    timeout: Duration,

    /// Output format
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    output: OutputFormat,

    /// Exit with 0 when there is no farm, or every farm has 0 replicas
    #[arg(long)]
    allow_empty: bool,

    /// Repeat until Ctrl-C, offer sessions of earlier rounds too, and report every miss as it happens
    #[arg(long, short)]
    watch: bool,

    /// Time from the start of one round to the start of the next; 0 for no pause
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration, requires = "watch")]
    interval: Duration,

    /// Stop after this many rounds
    #[arg(long, value_name = "NUMBER", requires = "watch", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Stop after this time
    #[arg(long, value_name = "DURATION", requires = "watch")]
    duration: Option<Duration>,
}

/// Output format.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum OutputFormat {
    /// Tables, coloured on a terminal unless NO_COLOR is set
    #[default]
    Text,
    /// One JSON document; with --watch one JSON object per line
    Json,
}

const EXIT_CODES: &str = "Exit codes: 0 when every session was resumed and every request was served, 1 when \
                          not, 2 for a usage error or nothing to probe.";

/// Runs the probe and prints the results to standard output. The exit code is 0 if every session was resumed and every
/// request was served, else 1.
///
/// # Errors
///
/// Fails if there is nothing to probe, or if the targets, the CA file or the output cannot be used.
pub fn run(args: ProbeArgs) -> Result<ExitCode, ProbeError> {
    let stdout = io::stdout();
    let style = match args.output {
        OutputFormat::Json => Style::Json,
        OutputFormat::Text if stdout.is_terminal() && no_color_is_unset() => Style::Coloured,
        OutputFormat::Text => Style::Plain,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let clean = runtime.block_on(probe(&args, Output::new(stdout.lock(), style)))?;
    Ok(ExitCode::from(u8::from(!clean)))
}

/// Runs the probe; returns whether every session was resumed and every request was served.
async fn probe<W: Write>(args: &ProbeArgs, mut output: Output<W>) -> Result<bool, ProbeError> {
    let exchanger = Exchanger {
        clients: clients(args)?,
        path: args.path.clone(),
        timeout: args.timeout.as_std(),
    };
    let targets = targets(args).await?;
    if args.watch {
        let plan = watch::Plan {
            interval: args.interval.as_std(),
            count: args.count,
            duration: args.duration.map(Duration::as_std),
        };
        return watch::watch(&exchanger, &targets, &plan, args.allow_empty, &mut output).await;
    }
    let farms = targets.look().await?;
    let unready = unready(&farms);
    let mut matrices = matrix::round(&exchanger, &farms, None).await;
    matrix::recheck(&targets, &mut matrices).await;
    let counts = Counts::of(matrices.iter().flat_map(Matrix::trials));
    if counts.offered == 0 && counts.gone == 0 {
        let why = why_nothing(&targets, &farms);
        if !args.allow_empty || !unready.is_empty() {
            return Err(ProbeError::Nothing(why));
        }
        output.nothing(&why)?;
        return Ok(true);
    }
    output.matrices(&matrices, &counts, &unready)?;
    Ok(counts.is_clean() && unready.is_empty())
}

async fn targets(args: &ProbeArgs) -> Result<Targets, ProbeError> {
    // Without a farm spec, only tickets can be expected.
    let default: &[Mechanism] = if args.addresses.is_empty() {
        Mechanism::value_variants()
    } else {
        &Mechanism::STATELESS
    };
    let mechanisms = match args.mechanisms.as_slice() {
        [] => default.to_vec(),
        chosen => chosen.to_vec(),
    };
    if !args.addresses.is_empty() {
        let host = |server_name: &ServerName<'static>| TargetHost {
            server_name: server_name.clone(),
            mechanisms: mechanisms.clone(),
        };
        return Ok(Targets::Fixed(TargetFarm {
            name: None,
            ring: None,
            ticket_lifetime: None,
            wants_proxies: true,
            proxies: ServerAddress::resolve(&args.addresses).await?,
            hosts: server_names(args)?.iter().map(host).collect(),
        }));
    }
    let client = target::connect(args.context.as_deref()).await?;
    let namespaces = match (args.all_namespaces, args.namespaces.as_slice()) {
        (true, _) => None,
        (false, []) => Some(vec![client.default_namespace().to_owned()]),
        (false, chosen) => Some(chosen.to_vec()),
    };
    Ok(Targets::Cluster(ClusterTargets {
        client,
        namespaces,
        names: args.farms.clone(),
        server_names: args.server_names.clone(),
        mechanisms,
    }))
}

/// The server names to send to the servers given by `--address`.
fn server_names(args: &ProbeArgs) -> Result<Vec<ServerName<'static>>, TargetError> {
    if !args.server_names.is_empty() {
        return Ok(args.server_names.clone());
    }
    // None if one of the addresses is an IP address.
    let names: Option<BTreeSet<&str>> = args
        .addresses
        .iter()
        .map(|address| match address {
            ServerAddress::Ip(_) => None,
            ServerAddress::Name(name, _) => Some(name.as_ref()),
        })
        .collect();
    let mut names = names.unwrap_or_default().into_iter();
    match (names.next(), names.next()) {
        (Some(name), None) => server_name(name)
            .map(|name| vec![name])
            .map_err(|_| TargetError::NoServerName),
        _ => Err(TargetError::NoServerName),
    }
}

fn clients(args: &ProbeArgs) -> Result<Clients, ProbeError> {
    let roots = match &args.ca_file {
        None => None,
        Some(path) => Some(roots(path).map_err(|why| ProbeError::CaFile {
            path: path.clone(),
            why,
        })?),
    };
    Clients::new(roots).map_err(|error| ProbeError::CaFile {
        path: args.ca_file.clone().unwrap_or_default(),
        why: error.to_string(),
    })
}

fn roots(path: &PathBuf) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())? {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() {
        return Err("contains no certificate".into());
    }
    Ok(roots)
}

fn no_color_is_unset() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn server_name(text: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(text.to_owned()).map_err(|_| "must be a DNS name or an IP address".into())
}

fn path(text: &str) -> Result<PathAndQuery, String> {
    match text.parse::<PathAndQuery>() {
        Ok(path) if text.starts_with('/') => Ok(path),
        _ => Err("must be a URL path that begins with /".into()),
    }
}

/// Parses a duration; accepts `0` without a unit.
fn duration(text: &str) -> Result<Duration, crate::api::DurationError> {
    if text == "0" {
        return Ok(Duration::from_secs(0));
    }
    text.parse()
}
