//! The certificates by which the caches of a farm know each other.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

use crate::cached_farm::{
    PATIENCE, SHOP, ask_as_peer, deploy, hurry_kubelets, resumed, sidecars, unless_disturbed,
};
use crate::harness::{
    Namespace, Version, condition_of, farm, process, run, s_client, scratch, wait_for, writes_of,
};

const PEERS_PORT: u16 = 7443;

#[test]
fn a_leaf_that_is_lost_is_made_anew_and_costs_no_restart_and_no_session() {
    let namespace = Namespace::with_operator("test-cache-leaf");
    deploy(&namespace, sidecars());
    let authority = secret(&namespace, "shop-cache-ca").expect("the farm has an authority");
    let leaf = secret(&namespace, "shop-cache-tls").expect("the farm has a leaf");
    let proxies = namespace.proxies("shop");
    assert_eq!(proxies.len(), 3);
    let caches: Vec<_> = proxies
        .iter()
        .map(|(_, address)| SocketAddr::new(address.ip(), PEERS_PORT))
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
    for ((name, address), session) in proxies.iter().zip(&sessions) {
        unless_disturbed(&namespace, name, || {
            s_client(*address, SHOP, Version::Tls12WithoutTickets, Some(session), None);
            resumes_at_all(&proxies, session)
        });
    }

    namespace.kubectl(&["delete", "secret", "shop-cache-tls"]);
    let new = wait_for("a new leaf", PATIENCE, || secret(&namespace, "shop-cache-tls"));
    assert_ne!(fingerprint(&new["tls.crt"]), fingerprint(&leaf["tls.crt"]));
    let same = secret(&namespace, "shop-cache-ca").as_ref() == Some(&authority);
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
    for session in &sessions {
        unless_disturbed(&namespace, "a session of before", || {
            resumes_at_all(&proxies, session)
        });
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
fn an_operator_killed_at_any_moment_founds_one_authority_for_each_farm() {
    let namespace = Namespace::with_operator("test-authority-killed");
    let user = format!("system:serviceaccount:{}:tlsfarm", namespace.name);
    let before = writes_of(&user).len();
    namespace.create_certificate("shop-tls", &["*.example.com"]);
    let apply = |name: &str| {
        let mut farm = farm(name, 0, &[("shop", &format!("{name}.example.com"))]);
        farm["spec"]["resumption"] = json!({"sessionCache": sidecars()});
        namespace.apply(&farm);
    };
    let authority = |farm: &str| secret(&namespace, &format!("{farm}-cache-ca"));
    let leaf = |farm: &str| secret(&namespace, &format!("{farm}-cache-tls"));

    // While requests are under way, or their answers.
    let steps = ["ring", "cache-ca", "cache-tls"];
    for step in steps {
        let farm = format!("at-{step}");
        let killer = kill_at(&namespace, operator(&namespace), &format!("secret/{farm}-{step}"));
        apply(&farm);
        killer.join().expect("the Secret is made");
        replace_operator(&namespace);
        wait_for("authority and leaf", PATIENCE, || {
            authority(&farm).and(leaf(&farm))
        });
    }

    // Between authority and leaf: the quota has room for the ring and one of them.
    limit_secrets(&namespace, 2);
    let mut victim = operator(&namespace);
    apply("between");
    let founded = wait_for("the authority", PATIENCE, || authority("between"));
    for _ in 0..3 {
        kill(victim);
        replace_operator(&namespace);
        victim = operator(&namespace);
        let same = authority("between").as_ref() == Some(&founded);
        assert!(same, "there is another authority");
        assert!(leaf("between").is_none(), "the quota does not hold");
    }
    namespace.kubectl(&["delete", "resourcequota", "secrets"]);
    let signed = wait_for("the leaf", PATIENCE, || leaf("between"));
    assert_eq!(signed["ca.crt"], founded["ca.crt"]);
    namespace.kubectl(&["scale", "tlsfarm/between", "--replicas=2"]);
    namespace.wait_condition_for("between", "SessionCacheReady", "True", "CacheReachable", PATIENCE);

    // Whether an answer reached anybody does not matter: what is created once and never written again is one.
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

/// What a Secret holds, decoded.
fn secret(namespace: &Namespace, name: &str) -> Option<BTreeMap<String, String>> {
    let secret = namespace.get("secret", name)?;
    let data = secret["data"].as_object().expect("a Secret holds something");
    let decoded = |value: &Value| {
        let text = value.as_str().expect("base64");
        run("base64", &["--decode"], Some(text)).expect("base64")
    };
    Some(
        data.iter()
            .map(|(key, value)| (key.clone(), decoded(value)))
            .collect(),
    )
}

/// The fingerprint of the first certificate in a text.
fn fingerprint(text: &str) -> String {
    let args = ["x509", "-noout", "-fingerprint", "-sha256"];
    run("openssl", &args, Some(text)).unwrap_or_else(|error| error)
}

/// The fingerprint of the certificate that a cache presents to its peers.
fn presented_by(cache: SocketAddr) -> String {
    // It refuses who presents none, after having presented its own.
    fingerprint(&ask_as_peer(cache, None))
}

fn resumes_at_all(proxies: &[(String, SocketAddr)], session: &Path) -> Result<(), String> {
    for (name, address) in proxies {
        let next = s_client(*address, SHOP, Version::Tls12WithoutTickets, None, Some(session));
        resumed(next, &format!("{} at {name}", session.display()))?;
    }
    Ok(())
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

const OPERATOR: &str = "app.kubernetes.io/component=operator";

/// The process of the operator, once it is ready.
fn operator(namespace: &Namespace) -> u32 {
    wait_for("the operator to be ready", PATIENCE, || {
        let pods = namespace.list("pods", OPERATOR);
        let ready = pods.iter().find(|pod| condition_of(pod, "Ready").0 == "True")?;
        let name = ready["metadata"]["name"].as_str().expect("named");
        process("operator", &format!("HOSTNAME={name}"))
    })
}

/// Lets another operator start at once, rather than when the kubelet sees fit.
fn replace_operator(namespace: &Namespace) {
    namespace.kubectl(&[
        "delete",
        "pod",
        "--selector",
        OPERATOR,
        "--grace-period=0",
        "--force",
    ]);
}

/// Ends a process without a chance to finish what it does.
fn kill(process: u32) {
    run("kill", &["-KILL", &process.to_string()], None).unwrap_or_else(|error| panic!("{error}"));
}

/// Kills a process as soon as a Secret is there.
fn kill_at(namespace: &Namespace, process: u32, secret: &str) -> JoinHandle<()> {
    let mut watch = Command::new("kubectl")
        .args([
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
    // What there is comes first, so the watch has begun when this is through.
    lines.next().expect("there are Secrets").expect("text");
    let secret = secret.to_owned();
    thread::spawn(move || {
        let seen = lines.map_while(Result::ok).any(|line| line == secret);
        kill(process);
        watch.kill().expect("our child");
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
