//! The certificates by which the caches of a farm know each other.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

use crate::cached_farm::{
    PATIENCE, PEERS_PORT, Proxy, SHOP, ask_as_peer, deploy, fingerprint, hurry_kubelets, presented_by,
    secret_texts, sidecars, when_linked,
};
use crate::due::{Due, resume, take};
use crate::harness::{
    Namespace, Version, farm, operator_process, replace_operator, run, scratch, signal, wait_for, writes_of,
};

#[test]
fn a_lost_leaf_is_reissued_without_restarts_or_lost_sessions() {
    let namespace = Namespace::with_operator("test-cache-leaf");
    deploy(&namespace, sidecars());
    let authority = secret_texts(&namespace, "shop-cache-ca").expect("the farm has an authority");
    let leaf = secret_texts(&namespace, "shop-cache-tls").expect("the farm has a leaf");
    let proxies = when_linked(&namespace, 3);
    let caches: Vec<_> = proxies
        .iter()
        .map(|proxy| SocketAddr::new(proxy.address.ip(), PEERS_PORT))
        .collect();
    let presented = || -> Vec<String> { caches.iter().map(|cache| presented_by(*cache)).collect() };
    assert_eq!(presented(), vec![fingerprint(&leaf["tls.crt"]); 3]);
    let containers = containers(&namespace);
    assert_eq!(
        containers.len(),
        6,
        "a proxy and a cache in each pod: {containers:?}"
    );
    let dir = scratch(namespace.name);
    let sessions: Vec<_> = (0..proxies.len())
        .map(|number| dir.join(format!("{number}.pem")))
        .collect();
    let id = Version::Tls12WithoutTickets;
    let mut due = Due::default();
    let resumes_at_all = |session: &Path| {
        proxies.iter().try_for_each(|at| {
            resume(
                at,
                SHOP,
                id,
                session,
                &format!("{} at {}", session.display(), at.name),
            )
        })
    };
    for (proxy, session) in proxies.iter().zip(&sessions) {
        due.attempt(&proxy.name, || {
            take(proxy, SHOP, id, session)?;
            resumes_at_all(session)
        });
    }

    namespace.kubectl(&["delete", "secret", "shop-cache-tls"]);
    let new = wait_for("a new leaf", PATIENCE, || {
        secret_texts(&namespace, "shop-cache-tls")
    });
    assert_ne!(fingerprint(&new["tls.crt"]), fingerprint(&leaf["tls.crt"]));
    let same = secret_texts(&namespace, "shop-cache-ca").as_ref() == Some(&authority);
    assert!(
        same && new["ca.crt"] == authority["ca.crt"],
        "there is another authority"
    );
    let file = |name: &str, content: &str| -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, content).expect("written");
        path
    };
    let (trusted, certificate) = (file("ca.crt", &new["ca.crt"]), file("tls.crt", &new["tls.crt"]));
    let words = ["verify", "-CAfile", path(&trusted), path(&certificate)];
    run("openssl", &words, None).unwrap_or_else(|error| panic!("{error}"));

    hurry_kubelets(&namespace, "new-leaf");
    wait_for("the caches to present the new leaf", PATIENCE, || {
        (presented() == vec![fingerprint(&new["tls.crt"]); 3]).then_some(())
    });
    let identities = [("old", &leaf), ("new", &new)].map(|(name, of)| {
        let part = |part| file(&format!("{name}-{part}"), &of[part]);
        (part("tls.crt"), part("tls.key"))
    });
    for cache in &caches {
        for identity in &identities {
            let answer = ask_as_peer(*cache, Some(identity));
            assert!(answer.contains("PONG"), "{cache} refuses a peer: {answer}");
        }
    }
    let links = when_linked(&namespace, 3);
    assert_eq!(names(&links), names(&proxies), "the pods were replaced");
    for session in &sessions {
        due.attempt("a session of before", || resumes_at_all(session));
    }
    assert_eq!(
        self::containers(&namespace),
        containers,
        "a container was restarted"
    );
    namespace.wait_ready("shop");
    namespace.delete();
}

#[test]
fn an_operator_killed_at_any_moment_creates_one_authority_per_farm() {
    let namespace = Namespace::with_operator("test-authority-killed");
    let user = format!("system:serviceaccount:{}:tlsfarm", namespace.name);
    let before = writes_of(&user).len();
    namespace.create_certificate("shop-tls", &["*.example.com"]);
    let apply = |name: &str| {
        let mut farm = farm(name, 0, &[("shop", &format!("{name}.example.com"))]);
        farm["spec"]["resumption"] = json!({"sessionCache": sidecars()});
        namespace.apply(&farm);
    };
    let authority = |farm: &str| secret_texts(&namespace, &format!("{farm}-cache-ca"));
    let leaf = |farm: &str| secret_texts(&namespace, &format!("{farm}-cache-tls"));

    // Kill it while a request or its response is in flight.
    let steps = ["ring", "cache-ca", "cache-tls"];
    for step in steps {
        let farm = format!("at-{step}");
        let killer = kill_at(
            &namespace,
            operator_process(&namespace),
            &format!("secret/{farm}-{step}"),
        );
        apply(&farm);
        killer.join().expect("the Secret is made");
        replace_operator(&namespace);
        wait_for("authority and leaf", PATIENCE, || {
            authority(&farm).and(leaf(&farm))
        });
    }

    // Kill it between authority and leaf: the quota has room for the ring and one of the two.
    limit_secrets(&namespace, 2);
    let mut victim = operator_process(&namespace);
    apply("between");
    let founded = wait_for("the authority", PATIENCE, || authority("between"));
    for _ in 0..3 {
        signal(victim, "KILL");
        replace_operator(&namespace);
        victim = operator_process(&namespace);
        let same = authority("between").as_ref() == Some(&founded);
        assert!(same, "there is another authority");
        assert!(leaf("between").is_none(), "the quota does not hold");
    }
    namespace.kubectl(&["delete", "resourcequota", "secrets"]);
    let signed = wait_for("the leaf", PATIENCE, || leaf("between"));
    assert_eq!(signed["ca.crt"], founded["ca.crt"]);
    namespace.kubectl(&["scale", "tlsfarm/between", "--replicas=2"]);
    namespace.wait_condition_for("between", "SessionCacheReady", "True", "CacheReachable", PATIENCE);

    // Whether the response arrived does not matter: the Secret must be created once and never written again.
    let writes = &writes_of(&user)[before..];
    for farm in steps
        .iter()
        .map(|step| format!("at-{step}"))
        .chain(["between".into()])
    {
        let object = format!("secrets/{farm}-cache-ca");
        let of: Vec<_> = writes.iter().filter(|write| write.object == object).collect();
        assert!(
            !of.is_empty() && of.iter().all(|write| write.verb == "create"),
            "{of:?}"
        );
    }
    namespace.delete();
}

/// Every container of the farm's pods by pod and name, with its id and how often it was restarted.
fn containers(namespace: &Namespace) -> BTreeMap<(String, String), (String, u64)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let mut found = BTreeMap::new();
    for pod in namespace.list("pods", "tlsfarm.dev/farm=shop") {
        for kind in ["initContainerStatuses", "containerStatuses"] {
            for container in pod["status"][kind].as_array().expect("a list") {
                let restarts = container["restartCount"].as_u64().expect("a number");
                found.insert(
                    (text(&pod["metadata"]["name"]), text(&container["name"])),
                    (text(&container["containerID"]), restarts),
                );
            }
        }
    }
    found
}

fn names(proxies: &[Proxy]) -> Vec<&str> {
    proxies.iter().map(|proxy| proxy.name.as_str()).collect()
}

/// Kills a process as soon as a Secret is there.
fn kill_at(namespace: &Namespace, process: u32, secret: &str) -> JoinHandle<()> {
    // Give up if it is never created.
    let mut watch = Command::new("timeout")
        .args([
            "120",
            "kubectl",
            "--namespace",
            namespace.name,
            "get",
            "secrets",
            "--watch",
            "--output=name",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl runs");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    // Existing Secrets are listed first, so the watch has begun once a line arrives.
    lines.next().expect("there are Secrets").expect("text");
    let secret = secret.to_owned();
    thread::spawn(move || {
        let seen = lines.map_while(Result::ok).any(|line| line == secret);
        signal(process, "KILL");
        // `timeout` passes the signal on to kubectl.
        signal(watch.id(), "TERM");
        watch.wait().expect("our child");
        assert!(seen, "{secret} was not made");
    })
}

/// Leaves room for so many Secrets more.
fn limit_secrets(namespace: &Namespace, more: usize) {
    let limit = namespace.list("secrets", "").len() + more;
    namespace.apply(&json!({
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "secrets"},
        "spec": {"hard": {"count/secrets": limit.to_string()}},
    }));
    wait_for("the quota to be in force", PATIENCE, || {
        let used = namespace.get("resourcequota", "secrets")?["status"]["used"].clone();
        (used["count/secrets"].as_str()?.parse() == Ok(limit - more)).then_some(())
    });
}

fn path(file: &Path) -> &str {
    file.to_str().expect("UTF-8")
}
