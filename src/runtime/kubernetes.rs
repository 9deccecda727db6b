//! The way to the API server, and what it answers, in words that fit on one line.

use kube::Config;
use kube::config::{KubeConfigOptions, KubeconfigError};

use super::error_chain::{one_line, with_causes};

/// Why there is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum NoCluster {
    /// There is no usable kubeconfig, and this is no pod of a cluster either.
    #[error("no cluster configuration: {}, and this process does not run in a pod with a service account; set KUBECONFIG", one_line(.0))]
    Nowhere(#[source] Box<KubeconfigError>),
    /// The kubeconfig has no such context, or it is unusable.
    #[error("no cluster configuration: {}", one_line(.0))]
    Context(#[source] Box<KubeconfigError>),
}

/// Finds the cluster of a kubeconfig's context; without a context, that of the current one, else the pod's
/// own.
///
/// # Errors
///
/// When there is none.
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

/// What the API server says, or what keeps it from being asked.
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
