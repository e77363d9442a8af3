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

#[tokio::test(start_paused = true)]
async fn what_repeats_is_counted_and_another_note_is_another_event() {
    let server = ApiServer::new();
    let events = Events::new(server.client(), "tasuki-0");
    let monitor = about("RuntimeMonitor", "prod", "uid-1");
    for note in ["roll 1 to 2", "roll 2 to 3", "roll 2 to 3"] {
        events.action(monitor.clone(), "CreateDaemon", note);
    }
    while server.writes().len() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let writes = server.writes();
    let methods: Vec<_> = writes.iter().map(|(what, _)| what.split(' ').next().unwrap()).collect();
    assert_eq!(methods, ["POST", "POST", "PATCH"]);
    assert_eq!((&writes[0].1["note"], &writes[1].1["note"]), (&"roll 1 to 2".into(), &"roll 2 to 3".into()));
}
