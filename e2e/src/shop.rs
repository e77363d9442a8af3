//! The customer's application alone: one container on a private engine, without ECS.

use crate::dockerd::{Cgroups, Dockerd};
use crate::process::until;
use crate::{http, image};
use anyhow::{Context, Result};
use bollard::models::{ContainerCreateBody, HostConfig};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;
use tasuki_cloud::runtime::docker::{Docker, LABEL, Options};

/// A running shop.
pub struct Shop {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its container id.
    pub id: String,
    /// The engine that it runs on.
    pub engine: Dockerd,
    network: Docker,
}

impl Shop {
    /// Starts it below `directory`. `name` is the network's; two shops at once need two names and
    /// two subnets.
    pub async fn start(directory: &Path, name: &str, subnet: [u8; 3], cgroups: Cgroups, lab: &Path) -> Result<Self> {
        let engine = Dockerd::start(directory, cgroups).await?;
        let client = engine.client()?;
        image::shop(lab)?.build(&client, "shop:1").await?;
        let options = Options { host: engine.host.clone(), name: name.to_owned(), subnet };
        let network = Docker::start(options).await?;
        let body = ContainerCreateBody {
            image: Some("shop:1".to_owned()),
            host_config: Some(HostConfig {
                network_mode: Some(name.to_owned()),
                auto_remove: Some(true),
                ..Default::default()
            }),
            labels: Some([(LABEL.to_owned(), name.to_owned())].into()),
            ..Default::default()
        };
        let id = client.create_container(None, body).await?.id;
        client.start_container(&id, None).await?;
        let networks =
            client.inspect_container(&id, None).await?.network_settings.and_then(|settings| settings.networks);
        let own = networks.and_then(|mut networks| networks.remove(name)).and_then(|endpoint| endpoint.ip_address);
        let address: Ipv4Addr = own.context("the container has no address")?.parse()?;
        let shop = Self { address, id, engine, network };
        shop.answers().await?;
        Ok(shop)
    }

    async fn answers(&self) -> Result<()> {
        let url = format!("http://{}:8080/", self.address);
        until("the application answers", Duration::from_secs(10), || async {
            Ok(http::send("GET", &url, "").await.ok())
        })
        .await
        .map(drop)
    }

    /// Ends it.
    pub async fn stop(self) -> Result<()> {
        Ok(self.network.shut_down().await?)
    }
}
