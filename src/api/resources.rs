//! CRD schema of a container's CPU and memory requests and limits.
//!
//! The Rust type is Kubernetes' `ResourceRequirements`. Its generated schema accepts quantities that the API server rejects
//! in a Deployment, includes resource claims, which the operator does not support, and documents quantities in forty lines.

use schemars::{Schema, SchemaGenerator, json_schema};

/// Quantities as the API server parses them: a number with an optional suffix, such as 500m or 128Mi.
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
            "requests": amounts("Resources that the scheduler reserves, such as cpu: 100m and memory: 64Mi."),
            "limits": amounts("Maximum that the container may use, such as cpu: 2 and memory: 256Mi."),
        },
    })
}
