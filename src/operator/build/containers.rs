//! Settings shared by all containers of a pod.

use k8s_openapi::api::core::v1::{
    Capabilities, ContainerPort, EnvVar, HTTPGetAction, Probe, SecretVolumeSource, SecurityContext, Volume,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::api::{LogFormat, LogSpec};

/// File mode of mounted Secrets: readable by owner and group only.
const SECRET_MODE: i32 = 0o440;

/// What to log, and how.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// A level, or target=level pairs separated by commas.
    pub filter: String,
    /// Format.
    pub format: LogFormat,
}

/// What all containers of a pod have in common.
pub(super) struct ContainerCommon<'a> {
    /// Image.
    pub(super) image: &'a str,
    /// `imagePullPolicy`.
    pub(super) pull_policy: &'a str,
    /// Environment variables.
    pub(super) env: Vec<EnvVar>,
}

/// The environment variables with the log settings of a farm.
pub(super) fn log_env(log: Option<&LogSpec>, defaults: &LogSettings) -> Vec<EnvVar> {
    let filter = log
        .and_then(|log| log.filter.as_ref())
        .unwrap_or(&defaults.filter);
    let format = match log.and_then(|log| log.format).unwrap_or(defaults.format) {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    [("TLSFARM_LOG", filter.as_str()), ("TLSFARM_LOG_FORMAT", format)]
        .map(|(name, value)| EnvVar {
            name: name.into(),
            value: Some(value.into()),
            ..EnvVar::default()
        })
        .into()
}

/// Security context of every container: the Pod Security level `restricted`, and a read-only root file system.
pub(super) fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".into()]),
            ..Capabilities::default()
        }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

pub(super) fn container_ports(ports: &[(&str, u16)]) -> Vec<ContainerPort> {
    ports
        .iter()
        .map(|(name, number)| ContainerPort {
            name: Some((*name).into()),
            container_port: i32::from(*number),
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        })
        .collect()
}

pub(super) fn probe(port: &str, path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String(port.into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(period.min(5)),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

pub(super) fn secret_volume(name: String, secret: String, optional: bool) -> Volume {
    Volume {
        name,
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret),
            optional: Some(optional),
            default_mode: Some(SECRET_MODE),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

pub(super) fn mount(volume: &str, path: String) -> VolumeMount {
    VolumeMount {
        name: volume.into(),
        mount_path: path,
        read_only: Some(true),
        ..VolumeMount::default()
    }
}
