//! The command line: `tlsfarm operator | proxy | cache | probe | crd | completion | man`.
//!
//! Exit codes: 0 for success, 1 if the probe found a session that was not resumed, 2 for invalid flags or files, 141 if
//! the reader of standard output is gone.

use std::error::Error;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand};
use kube::CustomResourceExt;
use tlsfarm::api::{LogFormat, TLSFarm, ports};
use tlsfarm::cache;
use tlsfarm::operator::{self, LogSettings, OperatorOptions};
use tlsfarm::probe::{self, ProbeArgs};
use tlsfarm::proxy;
use tlsfarm::runtime::telemetry;

/// Exit code that a shell reports for a program that SIGPIPE ended.
const EXIT_SIGPIPE: u8 = 141;

/// TLS session resumption on every replica of a web farm.
#[derive(Parser)]
#[command(version = version(), max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reconcile TLSFarm objects: run their proxies and rotate their ticket keys
    Operator(OperatorArgs),
    /// Run one proxy of a farm: terminate TLS and forward HTTP to the backends
    Proxy(ProxyArgs),
    /// Run one cache of a farm: store TLS sessions for proxies and other servers, over the Redis protocol
    Cache(CacheArgs),
    /// Test resumption: get a TLS session from each proxy, offer it to every proxy, and print the results
    Probe(ProbeArgs),
    /// Print the CustomResourceDefinition of TLSFarm as YAML
    Crd,
    /// Print a script that completes commands and options in a shell
    Completion {
        /// Shell to write the script for
        shell: clap_complete::Shell,
    },
    /// Write the man pages, one file per command
    Man {
        /// Existing directory, such as /usr/local/share/man/man1
        directory: PathBuf,
    },
}

#[derive(Args)]
struct OperatorArgs {
    /// Namespace to watch; repeat for several. Default: all namespaces, which requires a ClusterRole
    #[arg(
        long = "namespace",
        short,
        value_name = "NAMESPACE",
        env = "TLSFARM_NAMESPACES",
        value_delimiter = ',',
        value_parser = namespace
    )]
    namespaces: Vec<String>,

    /// Proxy image for farms that do not set spec.proxy.image
    #[arg(
        long,
        value_name = "IMAGE",
        env = "TLSFARM_PROXY_IMAGE",
        value_parser = NonEmptyStringValueParser::new()
    )]
    proxy_image: String,

    /// What proxies and caches log, for farms that do not set spec.proxy.log.filter
    #[arg(long, value_name = "FILTER", env = "TLSFARM_PROXY_LOG", default_value = "info", value_parser = log_filter)]
    proxy_log_filter: String,

    /// Log format of proxies and caches, for farms that do not set spec.proxy.log.format
    #[arg(
        long,
        value_name = "FORMAT",
        env = "TLSFARM_PROXY_LOG_FORMAT",
        value_enum,
        default_value_t = LogFormat::Json
    )]
    proxy_log_format: LogFormat,

    /// Listen address for /healthz, /readyz and /metrics
    #[arg(long, value_name = "ADDRESS", default_value_t = (Ipv6Addr::UNSPECIFIED, ports::ADMIN.1).into())]
    admin: SocketAddr,

    #[command(flatten)]
    log: LogArgs,
}

#[derive(Args)]
struct ProxyArgs {
    /// Configuration file, YAML or JSON. In a cluster the operator writes it; docs/standalone.md shows one
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Check the configuration file, the certificates and the ring, print the problems, and exit. Opens no port
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    log: LogArgs,
}

#[derive(Args)]
struct CacheArgs {
    /// Configuration file, YAML or JSON. In a cluster the operator writes it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// IP address of this pod, by which the other caches identify this one
    #[arg(long, value_name = "ADDRESS", env = "POD_IP")]
    pod_ip: Option<IpAddr>,

    /// Check the configuration file and the files that it names, print the problems, and exit. Opens no port
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    log: LogArgs,
}

#[derive(Args)]
struct LogArgs {
    /// What to log: a level (error, warn, info, debug, trace or off), or target=level pairs, separated by commas
    #[arg(long, value_name = "FILTER", env = "TLSFARM_LOG", default_value = "info", value_parser = log_filter)]
    log_filter: String,

    /// Log format
    #[arg(
        long,
        value_name = "FORMAT",
        env = "TLSFARM_LOG_FORMAT",
        value_enum,
        default_value_t
    )]
    log_format: LogFormat,
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let prints = command.prints();
    match run(command) {
        Ok(code) => code,
        Err(error) if prints && is_broken_pipe(&*error) => ExitCode::from(EXIT_SIGPIPE),
        Err(error) => {
            // There is nowhere to say that standard error cannot be written.
            let _ = writeln!(io::stderr(), "tlsfarm: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Operator(args) => {
            args.log.init()?;
            let options = OperatorOptions {
                namespaces: args.namespaces,
                proxy_image: args.proxy_image,
                image_pull_policy: None,
                proxy_log: LogSettings {
                    filter: args.proxy_log_filter,
                    format: args.proxy_log_format,
                },
                admin: args.admin,
            };
            tokio::runtime::Runtime::new()?.block_on(operator::run(options))?;
        }
        Command::Proxy(args) if args.check => {
            return print_problems(&args.config, proxy::check(&args.config)?);
        }
        Command::Cache(args) if args.check => {
            return print_problems(&args.config, cache::check(&args.config)?);
        }
        Command::Proxy(args) => {
            args.log.init()?;
            proxy::run(&args.config)?;
        }
        Command::Cache(args) => {
            args.log.init()?;
            cache::run(&args.config, args.pod_ip)?;
        }
        Command::Probe(args) => return Ok(probe::run(args)?),
        Command::Crd => {
            io::stdout().write_all(serde_saphyr::to_string(&TLSFarm::crd())?.as_bytes())?;
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tlsfarm", &mut script);
            io::stdout().write_all(&script)?;
        }
        Command::Man { directory } => clap_mangen::generate_to(Cli::command(), &directory)
            .map_err(|error| format!("failed to write man pages to {}: {error}", directory.display()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the result of a check: to standard error and with exit code 2 if there are problems.
fn print_problems(config_file: &Path, problems: Vec<String>) -> Result<ExitCode, Box<dyn Error>> {
    if problems.is_empty() {
        writeln!(io::stdout(), "{}: no problems found", config_file.display())?;
        return Ok(ExitCode::SUCCESS);
    }
    for problem in problems {
        let _ = writeln!(io::stderr(), "tlsfarm: {problem}");
    }
    Ok(ExitCode::from(2))
}

impl Command {
    /// Whether its purpose is its output, so that it has nothing left to do when the reader of that is gone.
    fn prints(&self) -> bool {
        match self {
            Self::Operator(_) => false,
            Self::Proxy(args) => args.check,
            Self::Cache(args) => args.check,
            Self::Probe(_) | Self::Crd | Self::Completion { .. } | Self::Man { .. } => true,
        }
    }
}

/// Whether standard output could not be written because its reader, such as `head`, has exited.
fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Version of the release, with the commit if TLSFARM_COMMIT was set at build time.
fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| match option_env!("TLSFARM_COMMIT") {
        Some(commit) if !commit.is_empty() => format!("{} (commit {commit})", env!("CARGO_PKG_VERSION")),
        _ => env!("CARGO_PKG_VERSION").to_owned(),
    });
    &VERSION
}

/// Rejects empty names: an empty environment variable must not select all namespaces.
fn namespace(text: &str) -> Result<String, &'static str> {
    let is_label = (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-');
    match is_label {
        true => Ok(text.to_owned()),
        false => Err("a namespace must consist of lower-case letters, digits and hyphens"),
    }
}

fn log_filter(text: &str) -> Result<String, telemetry::FilterError> {
    telemetry::validate_filter(text).map(|()| text.to_owned())
}

impl LogArgs {
    fn init(&self) -> Result<(), telemetry::FilterError> {
        telemetry::init(self.log_format, &self.log_filter)
    }
}
