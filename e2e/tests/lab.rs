//! The stand-ins behave like what they stand in for, so that a finding on them means something.

use std::time::Duration;
use tasuki_e2e::dockerd::{Cgroups, Dockerd};
use tasuki_e2e::process::until;
use tasuki_e2e::{attack, http, image};

#[tokio::test(flavor = "multi_thread")]
async fn every_attack_does_in_a_container_what_it_says() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Dockerd::start(directory.path(), Cgroups::Host).await.unwrap();
    let client = engine.client().unwrap();
    image::shop(std::path::Path::new(env!("CARGO_BIN_EXE_tasuki-lab")))
        .unwrap()
        .build(&client, "shop:1")
        .await
        .unwrap();
    let options = tasuki_cloud::runtime::docker::Options {
        host: engine.host.clone(),
        name: "tsk-test-lab".to_owned(),
        subnet: [172, 31, 252],
    };
    // The cloud's network; the container is started by hand.
    let docker = tasuki_cloud::runtime::docker::Docker::start(options).await.unwrap();
    let body = bollard::models::ContainerCreateBody {
        image: Some("shop:1".to_owned()),
        host_config: Some(bollard::models::HostConfig {
            network_mode: Some("tsk-test-lab".to_owned()),
            auto_remove: Some(true),
            ..Default::default()
        }),
        labels: Some([(tasuki_cloud::runtime::docker::LABEL.to_owned(), "tsk-test-lab".to_owned())].into()),
        ..Default::default()
    };
    let id = client.create_container(None, body).await.unwrap().id;
    client.start_container(&id, None).await.unwrap();
    let network = client.inspect_container(&id, None).await.unwrap().network_settings.unwrap().networks.unwrap();
    let address = network["tsk-test-lab"].ip_address.clone().unwrap().parse().unwrap();
    until("the application answers", Duration::from_secs(10), || async {
        Ok(http::send("GET", &format!("http://{address}:8080/"), "").await.ok())
    })
    .await
    .unwrap();

    let mined = attack::miner(address).await.unwrap();
    assert!(mined.contains("pool answered: {\"id\":1"), "{mined}");
    attack::reverse_shell(address).await.unwrap();
    let dropped = attack::new_binary(address).await.unwrap();
    assert!(dropped.contains("usage: tasuki-lab"), "the copy ran: {dropped}");
    assert_eq!(attack::fileless(address).await.unwrap(), "from memory\n");
    docker.shut_down().await.unwrap();
}
