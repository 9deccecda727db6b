//! The page on metrics names what proxies print.

use crate::harness::{Farm, visit};

#[test]
fn every_metric_that_a_proxy_prints_is_explained() {
    let page = include_str!("../../docs/metrics.md");
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    assert!(visit(&farm, proxy.https, "shop.test", &[]).served());
    let (_, metrics) = proxy.get("/metrics");
    let mut count = 0;
    for line in metrics.lines() {
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) else {
            continue;
        };
        let suffix = if kind == "counter" { "_total" } else { "" };
        assert!(
            page.contains(&format!("| `{name}{suffix}` |")),
            "docs/metrics.md does not explain {name}{suffix}"
        );
        count += 1;
    }
    assert!(count > 10, "only {count} metrics:\n{metrics}");
}
