//! The chart's release `tlsfarm` in a test's namespace.

use std::time::Duration;

use super::{Namespace, image, repository, run, wait_for};

impl Namespace {
    /// Installs or upgrades the release with the image under test and `settings`; waits until its pods are ready. All
    /// releases of the tests share the CRD that `make test-kubernetes` has installed.
    pub fn helm(&self, command: &str, settings: &str) {
        let image = image();
        let (repository_name, tag) = image.rsplit_once(':').expect("the image has a tag");
        let chart = repository().join("charts/tlsfarm");
        let settings = format!("image.repository={repository_name},image.tag={tag},{settings}");
        let chart = chart.to_str().expect("UTF-8");
        let args = [
            command,
            "tlsfarm",
            chart,
            "--namespace",
            self.name,
            "--set",
            settings.trim_end_matches(','),
            "--wait",
        ];
        run("helm", &args, None).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Uninstalls the release and waits until nothing of it is left.
    pub fn uninstall(&self) {
        let helm = |command: &[&str]| {
            let args = [command, &["tlsfarm", "--namespace", self.name]].concat();
            run("helm", &args, None).unwrap_or_else(|error| panic!("{error}"))
        };
        let manifest = helm(&["get", "manifest"]);
        helm(&["uninstall", "--wait"]);
        let kinds = "deployments,daemonsets,replicasets,controllerrevisions,pods,services,endpointslices,configmaps,secrets,\
                     serviceaccounts,roles,rolebindings,poddisruptionbudgets,networkpolicies";
        let get = [
            "--namespace",
            self.name,
            "get",
            "--ignore-not-found",
            "--output=name",
            "-f",
            "-",
        ];
        wait_for("everything of ours to go", Duration::from_secs(90), || {
            let labelled = self.list(kinds, "app.kubernetes.io/name=tlsfarm");
            let installed = run("kubectl", &get, Some(&manifest)).unwrap_or_else(|error| panic!("{error}"));
            (labelled.is_empty() && installed.is_empty()).then_some(())
        });
    }
}
