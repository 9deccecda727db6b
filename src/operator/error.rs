//! Why one pass over a farm failed. The variants' names are the values of the metric label `reason`.

use std::time::Duration;

use super::peer_certificates::IssueError;
use crate::ring::RandomnessError;
use crate::runtime::cluster::describe;

/// Why one pass over a farm failed. It is tried again, later each time.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReconcileError {
    /// The API server did not do what was asked.
    #[error("cannot {verb} {object}: {}", describe(source))]
    Api {
        verb: &'static str,
        object: String,
        source: Box<kube::Error>,
    },
    /// The same for a Secret, without the server's words, which might quote it.
    #[error("cannot {verb} Secret {name}: {why}")]
    Secret {
        verb: &'static str,
        name: String,
        why: String,
    },
    /// The namespace is going and takes the farm along; nothing can be created in it any more.
    #[error("cannot {verb} {object}: the namespace is being deleted")]
    NamespaceTerminating { verb: &'static str, object: String },
    /// The operating system gave no random bytes for a key.
    #[error(transparent)]
    Randomness(#[from] RandomnessError),
    /// No certificate could be made for the caches.
    #[error(transparent)]
    Certificate(#[from] IssueError),
    /// The pass took too long.
    #[error("the API server or a proxy is too slow: not finished within {} s", .0.as_secs())]
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
            _ => "no answer from the API server".to_owned(),
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
