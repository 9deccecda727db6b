//! Kubernetes client configuration, and one-line texts of API errors.

use kube::Config;
use kube::config::{KubeConfigOptions, KubeconfigError};

use super::error_chain::{one_line, with_causes};

/// Why no Kubernetes client configuration was found.
#[derive(Debug, thiserror::Error)]
pub enum NoCluster {
    /// There is no valid kubeconfig, and the process does not run in a pod.
    #[error("no cluster configuration: {}, and this process does not run in a pod with a service account; set KUBECONFIG", one_line(.0))]
    Nowhere(#[source] Box<KubeconfigError>),
    /// The kubeconfig is invalid or has no such context.
    #[error("no cluster configuration: {}", one_line(.0))]
    Context(#[source] Box<KubeconfigError>),
}

/// Loads the configuration of a kubeconfig context; without one, that of the current context, or else the in-cluster
/// configuration.
///
/// # Errors
///
/// Fails if there is neither.
pub async fn find(context: Option<&str>) -> Result<Config, NoCluster> {
    let options = KubeConfigOptions {
        context: context.map(str::to_owned),
        ..KubeConfigOptions::default()
    };
    match (Config::from_kubeconfig(&options).await, context) {
        (Ok(config), _) => Ok(config),
        (Err(error), Some(_)) => Err(NoCluster::Context(Box::new(error))),
        (Err(error), None) => Config::incluster().map_err(|_| NoCluster::Nowhere(Box::new(error))),
    }
}

/// Formats an API error: the server's message, or the client error with its causes.
pub fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => with_causes(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_context_that_does_not_exist_is_named() {
        let error = find(Some("no such context")).await.expect_err("there is none");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}
