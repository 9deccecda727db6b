//! `spec.proxy.log`: what proxies and their cache sidecars log, and in which format.

use clap::ValueEnum;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Logs of the proxies and their cache sidecars. What is not set here is set for all farms by the operator.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogSpec {
    /// What to log: a level (error, warn, info, debug, trace or "off", which YAML wants in quotes), or target=level pairs,
    /// separated by commas. Default: what the operator is configured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^(([a-z0-9_:]+=)?(error|warn|info|debug|trace|off))(,([a-z0-9_:]+=)?(error|warn|info|debug|trace|off))*$')").message("must be a level (error, warn, info, debug, trace or off), or target=level pairs, separated by commas"))]
    pub filter: Option<String>,

    /// Text writes lines for people, Json one JSON object per line. Default: what the operator is configured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<LogFormat>,
}

/// Format of logs.
// Its variants have plain comments: documented ones would replace the description of the field in the CRD.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize, ValueEnum)]
#[allow(missing_docs)]
pub enum LogFormat {
    #[default] // Of the command line; the operator's default for farms is Json.
    Text,
    Json,
}
