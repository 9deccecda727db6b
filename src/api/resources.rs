//! How much CPU and memory a container asks for and may use, as the schema says it.
//!
//! The type is Kubernetes' own. Its schema would accept quantities that no Deployment may have, offers resource claims,
//! which need a pod of the user's own, and explains quantities over forty lines.

use schemars::{Schema, SchemaGenerator, json_schema};

/// Quantities, as the API server reads them: a number with an optional suffix, such as 500m or 128Mi.
const QUANTITY: &str = r"^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$";

/// Schema of `ResourceRequirements` without claims.
pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
    let amounts = |description: &str| {
        json_schema!({
            "type": "object",
            "description": description,
            "additionalProperties": {
                "pattern": QUANTITY,
                "x-kubernetes-int-or-string": true,
            },
        })
    };
    json_schema!({
        "type": "object",
        "properties": {
            "requests": amounts("What the scheduler sets aside, such as cpu: 100m and memory: 64Mi."),
            "limits": amounts("The most that may be used, such as cpu: 2 and memory: 256Mi."),
        },
    })
}
