//! Clients that have had too many sessions stored (E5 of the requirements).

use tokio::task::LocalSet;

use super::*;
use crate::proxy::resume::session_cache::StoreAllowance;
use crate::proxy::resume::session_cache::tests::{Reluctant, patient, sessions, until};
use crate::runtime::test_dir::TestDir;

/// Sessions that take more than a minute to earn again, stored by as many at a time as the client of the cache takes.
const TOO_MANY: usize = 30_000;
const AT_A_TIME: usize = 500;

#[tokio::test]
async fn a_client_over_budget_is_served_without_sessions_and_others_with_them() {
    let dir = TestDir::new();
    let socket = dir.join("socket");
    let test = async {
        let server = Reluctant::start(&socket);
        let mut proxy = Proxy::new();
        proxy.cache.follow(Some(&patient(&socket)));
        let greedy = proxy.client;
        until("a connection", || {
            proxy.cache.room(greedy) == StoreAllowance::Free
        })
        .await;
        for taken in (AT_A_TIME..=TOO_MANY).step_by(AT_A_TIME) {
            proxy.cache.store(greedy, sessions(AT_A_TIME)).await;
            until("all of them to be taken", || server.taken.get() == taken).await;
            server.answers.notify_one();
        }

        // Some share the budget of the first.
        let mut others = (2..=u8::MAX).map(|last| Ipv4Addr::new(127, 0, 0, last).into());
        let other = others.find(|other| proxy.cache.room(*other) == StoreAllowance::Free);
        let other = other.expect("a client with a budget of its own");

        for (client, given) in [(greedy, false), (other, true)] {
            proxy.client = client;
            let before = server.taken.get();
            let config = Arc::new(self::client(&[&TLS13]));
            let met = visit(&proxy, &config, "once.test").await.expect("served");
            assert_eq!(met.kind, Some(HandshakeKind::Full));
            let by_id = edited(&hello(self::client(&[&TLS12]), "once.test"), &[]);
            let promise = promise(&proxy.answer_to_no_more_than(&by_id).await);
            assert!(!promise.ticket);
            assert_eq!(!promise.session_id.is_empty(), given, "{client}");
            let tickets = if given { 2 } else { 0 };
            until("the sessions of its tickets", || {
                server.taken.get() == before + tickets
            })
            .await;
        }
        assert!(
            server.pings.get() < TOO_MANY / AT_A_TIME,
            "what fills more than one batch is sent only with the next probe"
        );
        let issued = BTreeMap::from([
            ("outcome=\"sealed\"".to_owned(), 2),
            ("outcome=\"over_budget\"".to_owned(), 2),
        ]);
        assert_eq!(proxy.counted("tickets_issued"), issued);
        let puts = proxy.counted("session_cache_requests");
        assert_eq!(puts.get("operation=\"put\",outcome=\"over_budget\""), Some(&2));
    };
    LocalSet::new().run_until(test).await;
}
