//! The page on metrics names what proxies and caches print.

use crate::cache_peers::Caches;
use crate::harness::{Farm, visit};

#[test]
fn every_metric_that_a_cache_prints_is_explained() {
    let caches = Caches::start(1);
    assert!(all_explained(&caches.all[0].get("/metrics").1) > 15);
}

#[test]
fn every_metric_that_a_proxy_prints_is_explained() {
    let farm = Farm::new("web/shop");
    let proxy = farm.start();
    assert!(visit(&farm, proxy.https, "shop.test", &[]).served());
    assert!(all_explained(&proxy.get("/metrics").1) > 10);
}

/// How many metrics there are, all of which the page explains.
fn all_explained(metrics: &str) -> usize {
    let page = include_str!("../../docs/metrics.md");
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names = types.map(|line| match line.split_once(' ') {
        Some((name, "counter")) => format!("{name}_total"),
        Some((name, _)) => name.to_owned(),
        None => line.to_owned(),
    });
    names
        .inspect(|name| {
            assert!(
                page.contains(&format!("| `{name}` |")),
                "docs/metrics.md does not explain {name}"
            )
        })
        .count()
}
