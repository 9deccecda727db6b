//! Errors of a reconciliation. The variants' names are the values of the metric label `reason`.

use std::time::Duration;

use super::decide::peer_certificates::IssueError;
use crate::ring::RandomnessError;
use crate::runtime::kubernetes::describe;

/// Why a reconciliation failed. It is retried with back-off.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReconcileError {
    /// A request to the API server failed.
    #[error("failed to {verb} {object}: {}", describe(source))]
    Api {
        verb: &'static str,
        object: String,
        source: Box<kube::Error>,
    },
    /// A request for a Secret failed. The server's message is omitted, because it may quote the Secret.
    #[error("failed to {verb} Secret {name}: {why}")]
    Secret {
        verb: &'static str,
        name: String,
        why: String,
    },
    /// The namespace is terminating: nothing can be created in it.
    #[error("failed to {verb} {object}: the namespace is being deleted")]
    NamespaceTerminating { verb: &'static str, object: String },
    /// The operating system returned no random bytes for a key.
    #[error(transparent)]
    Randomness(#[from] RandomnessError),
    /// Issuing a certificate for the caches failed.
    #[error(transparent)]
    Certificate(#[from] IssueError),
    /// The reconciliation timed out.
    #[error("reconciliation timed out after {} s: the API server or a proxy responds too slowly", .0.as_secs())]
    Timeout(Duration),
}

impl ReconcileError {
    pub(super) fn api(
        verb: &'static str,
        object: impl Into<String>,
    ) -> impl FnOnce(kube::Error) -> ReconcileError {
        let object = object.into();
        move |source| {
            if is_namespace_terminating(&source) {
                return Self::NamespaceTerminating { verb, object };
            }
            let source = Box::new(source);
            Self::Api { verb, object, source }
        }
    }

    pub(super) fn secret(verb: &'static str, name: &str, source: &kube::Error) -> Self {
        if is_namespace_terminating(source) {
            let object = format!("Secret {name}");
            return Self::NamespaceTerminating { verb, object };
        }
        let why = match source {
            kube::Error::Api(status) => format!("{} ({})", status.reason, status.code),
            _ => "no response from the API server".to_owned(),
        };
        Self::Secret {
            verb,
            name: name.to_owned(),
            why,
        }
    }

    /// Value of the metric label.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Api { .. } => "Api",
            Self::Secret { .. } => "Secret",
            Self::NamespaceTerminating { .. } => "NamespaceTerminating",
            Self::Randomness(_) => "Randomness",
            Self::Certificate(_) => "Certificate",
            Self::Timeout(_) => "Timeout",
        }
    }
}

fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    let causes = status.details.as_ref().map(|details| details.causes.as_slice());
    causes
        .unwrap_or_default()
        .iter()
        .any(|cause| cause.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use serde_json::json;

    use super::*;

    /// What the API server answers in a namespace that is being deleted, or for another cause.
    fn forbidden(cause: &str) -> kube::Error {
        let mut status = Status::failure("the Secret holds hunter2", "Forbidden").with_code(403);
        let details = json!({"causes": [{"reason": "Other"}, {"reason": cause}]});
        status.details = serde_json::from_value(details).expect("details");
        kube::Error::Api(status.boxed())
    }

    #[test]
    fn a_terminating_namespace_is_distinguished_from_other_refusals() {
        let going = || forbidden("NamespaceTerminating");
        for error in [
            ReconcileError::api("create", "Deployment shop-proxy")(going()),
            ReconcileError::secret("create", "shop-ring", &going()),
        ] {
            assert_eq!(error.reason(), "NamespaceTerminating");
            assert!(
                error.to_string().ends_with("the namespace is being deleted"),
                "{error}"
            );
        }
        let other = ReconcileError::api("create", "Deployment shop-proxy")(forbidden("FieldValueForbidden"));
        assert_eq!(other.reason(), "Api");
        assert!(
            other
                .to_string()
                .starts_with("failed to create Deployment shop-proxy"),
            "{other}"
        );
        let unanswered = ReconcileError::api("create", "Deployment shop-proxy")(kube::Error::TlsRequired);
        assert_eq!(unanswered.reason(), "Api");
    }

    #[test]
    fn errors_about_secrets_do_not_quote_the_api_server() {
        let error = ReconcileError::secret("update", "shop-ring", &forbidden("FieldValueForbidden"));
        assert_eq!(error.reason(), "Secret");
        assert_eq!(
            error.to_string(),
            "failed to update Secret shop-ring: Forbidden (403)"
        );
        let unanswered = ReconcileError::secret("update", "shop-ring", &kube::Error::TlsRequired);
        assert_eq!(
            unanswered.to_string(),
            "failed to update Secret shop-ring: no response from the API server"
        );
    }

    #[test]
    fn a_pass_that_took_too_long_says_so() {
        let error = ReconcileError::Timeout(Duration::from_secs(30));
        assert_eq!(error.reason(), "Timeout");
        assert!(error.to_string().contains("timed out after 30 s"), "{error}");
    }
}
