//! ServiceAccount, Role and RoleBinding of the proxies. The only permission is to list and watch EndpointSlices.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};

use crate::operator::names::FarmId;

pub(super) fn service_account(id: &FarmId) -> ServiceAccount {
    ServiceAccount {
        metadata: id.metadata(id.proxy_name()),
        // Pods ask for the token themselves, so that no other pod gets one by naming this account.
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

pub(super) fn role(id: &FarmId) -> Role {
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    Role {
        metadata: id.metadata(id.proxy_name()),
        rules: Some(vec![PolicyRule {
            api_groups: Some(words(&["discovery.k8s.io"])),
            resources: Some(words(&["endpointslices"])),
            verbs: words(&["list", "watch"]),
            ..PolicyRule::default()
        }]),
    }
}

pub(super) fn role_binding(id: &FarmId) -> RoleBinding {
    RoleBinding {
        metadata: id.metadata(id.proxy_name()),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".into(),
            kind: "Role".into(),
            name: id.proxy_name(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name: id.proxy_name(),
            namespace: Some(id.namespace().to_owned()),
            ..Subject::default()
        }]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::operator::build::tests::{built, spec};

    #[test]
    fn proxies_may_read_endpoint_slices_and_nothing_else() {
        let role = &built(spec())[&("Role".into(), "shop-proxy".into())];
        let only = json!([{
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["list", "watch"],
        }]);
        assert_eq!(role["rules"], only);
    }
}
