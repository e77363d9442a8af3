//! What becomes of events.

use super::*;
use crate::testing::ApiServer;

#[tokio::test(start_paused = true)]
async fn an_event_stands_beside_what_it_is_about_and_a_flood_is_dropped_and_counted() {
    let server = ApiServer::new();
    let events = Events::new(server.client(), "tasuki-0");
    let monitor = about("RuntimeMonitor", "prod", "uid-1");
    events.action(monitor.clone(), "RolloutStarted", &"é".repeat(2000));
    while server.writes().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (what, event) = server.writes().remove(0);
    assert_eq!(what, "POST /apis/events.k8s.io/v1/namespaces/default/events");
    assert_eq!((&event["reason"], &event["type"]), (&"RolloutStarted".into(), &"Normal".into()));
    assert_eq!((&event["regarding"]["uid"], &event["reportingController"]), (&"uid-1".into(), &"tasuki".into()));
    assert_eq!(event["note"].as_str().unwrap().len(), MAX_NOTE);

    let mut handed = 1;
    while events.dropped() == 0 {
        events.warning(monitor.clone(), &format!("Reason{handed}"), "n");
        handed += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(server.writes().len() as u32, PER_WINDOW);
    tokio::time::sleep(WINDOW).await;
    events.action(monitor, "After", "n");
    while server.writes().len() as u32 == PER_WINDOW {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(server.writes().last().unwrap().1["reason"], "After");
}
