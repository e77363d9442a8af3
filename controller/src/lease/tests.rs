//! Who takes a lease, and what a holder does.

use super::*;
use crate::testing::ApiServer;
use serde_json::json;

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/tasuki-system/leases/tasuki";

fn spec(holder: Option<&str>, seconds: Option<i32>) -> LeaseSpec {
    LeaseSpec { holder_identity: holder.map(str::to_owned), lease_duration_seconds: seconds, ..LeaseSpec::default() }
}

#[test]
fn who_takes_it() {
    let second = Duration::from_secs;
    for (spec, unchanged, step) in [
        (None, 0, Step::Acquire),
        (Some(spec(None, Some(15))), 0, Step::Acquire),
        (Some(spec(Some(""), Some(15))), 0, Step::Acquire),
        (Some(spec(Some("me"), Some(15))), 0, Step::Renew),
        (Some(spec(Some("me"), Some(15))), 900, Step::Renew),
        (Some(spec(Some("other"), Some(15))), 14, Step::Yield),
        (Some(spec(Some("other"), Some(15))), 15, Step::Acquire),
        (Some(spec(Some("other"), None)), 14, Step::Yield),
        (Some(spec(Some("other"), None)), 15, Step::Acquire),
        // What stands in it may be nonsense.
        (Some(spec(Some("other"), Some(-5))), 14, Step::Yield),
        (Some(spec(Some("other"), Some(i32::MAX))), 59, Step::Yield),
        (Some(spec(Some("other"), Some(i32::MAX))), 60, Step::Acquire),
        (Some(spec(Some("other"), Some(0))), 0, Step::Yield),
    ] {
        assert_eq!(evaluate(spec.as_ref(), "me", second(unchanged)), step, "{spec:?} {unchanged}");
    }
}

#[test]
fn a_renewal_keeps_the_time_of_taking_and_a_take_over_is_counted() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let first = taken(None, Step::Acquire, "a", at(10));
    assert_eq!((first.lease_transitions, &first.acquire_time), (Some(1), &Some(MicroTime(at(10)))));
    let renewed = taken(Some(&first), Step::Renew, "a", at(15));
    assert_eq!((renewed.lease_transitions, &renewed.acquire_time), (Some(1), &Some(MicroTime(at(10)))));
    assert_eq!(renewed.renew_time, Some(MicroTime(at(15))));
    let other = taken(Some(&renewed), Step::Acquire, "b", at(40));
    assert_eq!((other.lease_transitions, &other.acquire_time), (Some(2), &Some(MicroTime(at(40)))));
}

async fn acquire(server: &ApiServer, id: &str) -> Held {
    Lease::acquire(&server.cluster(), "tasuki", id, &watch::Sender::default()).await
}

fn holder(server: &ApiServer) -> String {
    server.get(PATH).unwrap()["spec"]["holderIdentity"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_the_next_follows_when_it_is_given_back() {
    let server = ApiServer::new();
    let first = acquire(&server, "a").await;
    let other = server.clone();
    let second = tokio::spawn(async move { acquire(&other, "b").await });
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!second.is_finished() && holder(&server) == "a");
    first.release().await;
    let second = second.await.unwrap();
    assert_eq!(holder(&server), "b");
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn who_waits_says_for_what() {
    let server = ApiServer::new();
    let first = acquire(&server, "a").await;
    let (waits, mut words) = watch::channel("");
    let other = server.clone();
    let second = tokio::spawn(async move { Lease::acquire(&other.cluster(), "tasuki", "b", &waits).await });
    let mut says = async |what: &str| words.wait_for(|words| *words == what).await.map(drop).unwrap();
    says("another controller holds the lease").await;
    server.set_failing(Some(500));
    says("the API server does not give the lease").await;
    server.set_failing(None);
    drop(first);
    let _second = second.await.unwrap();
    assert_eq!(holder(&server), "b");
}

#[tokio::test(start_paused = true)]
async fn it_belongs_to_the_release_whose_anchor_is_there() {
    let server = ApiServer::new();
    let anchor = "/api/v1/namespaces/tasuki-system/configmaps/tasuki-anchor";
    server.put(anchor, json!({ "metadata": { "name": "tasuki-anchor" } }));
    let _held = acquire(&server, "a").await;
    let owner = &server.get(PATH).unwrap()["metadata"]["ownerReferences"][0]["uid"];
    assert_eq!(*owner, server.get(anchor).unwrap()["metadata"]["uid"]);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_is_gone_is_followed_after_its_time() {
    let server = ApiServer::new();
    drop(acquire(&server, "a").await);
    let _second = acquire(&server, "b").await;
    assert_eq!(holder(&server), "b");
    assert_eq!(server.get(PATH).unwrap()["spec"]["leaseTransitions"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_starts_again_goes_on_at_once() {
    let server = ApiServer::new();
    drop(acquire(&server, "a").await);
    let _again = acquire(&server, "a").await;
    assert_eq!(server.get(PATH).unwrap()["spec"]["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_renew_or_is_overruled_knows_it_is_lost() {
    let server = ApiServer::new();
    let held = acquire(&server, "a").await;
    server.set_failing(Some(500));
    held.lost().await;
    server.set_failing(None);
    drop(held);

    let held = acquire(&server, "a").await;
    let mut stolen = server.get(PATH).unwrap();
    stolen["spec"]["holderIdentity"] = json!("b");
    server.put(PATH, stolen);
    held.lost().await;
    // What is lost is not given back.
    held.release().await;
    assert_eq!(holder(&server), "b");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_decided_on_an_old_state_is_refused() {
    let server = ApiServer::new();
    let _held = acquire(&server, "a").await;
    let api: Api<Object> = Api::namespaced(server.client(), "tasuki-system");
    let old = api.get("tasuki").await.unwrap();
    server.put(PATH, server.get(PATH).unwrap());
    let error = api.replace("tasuki", &PostParams::default(), &old).await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(status) if status.code == 409));
}
