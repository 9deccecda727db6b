//! The way to the API server, and what it answers, in words that fit on one line.

use std::error::Error;

use kube::Config;
use kube::config::{KubeConfigOptions, KubeconfigError};

/// Why there is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum NoCluster {
    /// There is no usable kubeconfig, and this is no pod of a cluster either.
    #[error("no cluster: {}, and this is no pod with a service account; set KUBECONFIG", one_line(.0))]
    Nowhere(#[source] Box<KubeconfigError>),
    /// The kubeconfig has no such context, or it is unusable.
    #[error("no cluster: {}", one_line(.0))]
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

/// An error and what caused it. The transport's errors name their causes in their sources only.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = one_line(error);
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = one_line(cause);
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Without the excerpt of a file that a parser's error ends with.
fn one_line(error: &(impl ToString + ?Sized)) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot connect")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("refused\n --> an excerpt")]
    struct Inner;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot connect: {0}")]
    struct Quoting(#[source] Outer);

    #[test]
    fn causes_are_named_once_and_on_one_line() {
        assert_eq!(with_causes(&Outer(Inner)), "cannot connect: refused");
        assert_eq!(
            with_causes(&Quoting(Outer(Inner))),
            "cannot connect: cannot connect: refused"
        );
    }

    #[tokio::test]
    async fn a_context_that_does_not_exist_is_named() {
        let error = find(Some("no such context")).await.expect_err("there is none");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}
