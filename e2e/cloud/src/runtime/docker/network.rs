//! The bridge that plays the VPC, with 169.254.170.2 on the host's side of it.

use super::{DockerError, Engine, LABEL, Options};
use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::process::Command;

/// Where ECS serves task metadata and credentials; fixed by AWS.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 2);

/// The host's address on the bridge.
pub(super) fn gateway(options: &Options) -> Ipv4Addr {
    let [a, b, c] = options.subnet;
    Ipv4Addr::new(a, b, c, 1)
}

/// Makes the bridge, replacing one that an earlier run left.
pub(super) async fn create(engine: &Engine) -> Result<(), DockerError> {
    let name = &engine.options.name;
    if engine.client.inspect_network(name, None).await.is_ok() {
        engine.client.remove_network(name).await.map_err(engine.error("remove an old network"))?;
    }
    let [a, b, c] = engine.options.subnet;
    let request = NetworkCreateRequest {
        name: name.clone(),
        driver: Some("bridge".to_owned()),
        ipam: Some(Ipam {
            config: Some(vec![IpamConfig {
                subnet: Some(format!("{a}.{b}.{c}.0/24")),
                gateway: Some(gateway(&engine.options).to_string()),
                ..Default::default()
            }]),
            ..Default::default()
        }),
        options: Some(HashMap::from([("com.docker.network.bridge.name".to_owned(), name.clone())])),
        labels: Some(HashMap::from([(LABEL.to_owned(), name.clone())])),
        ..Default::default()
    };
    engine.client.create_network(request).await.map_err(engine.error("create a network"))?;
    // Containers reach it through their default route, since the host owns the address.
    ip(&["address", "replace", &format!("{METADATA}/32"), "dev", name])
}

/// Removes the bridge, and the metadata address with it.
pub(super) async fn remove(engine: &Engine) -> Result<(), DockerError> {
    engine.client.remove_network(&engine.options.name).await.map_err(engine.error("remove its network"))
}

fn ip(arguments: &[&str]) -> Result<(), DockerError> {
    let doing = format!("run `ip {}`", arguments.join(" "));
    let output = Command::new("ip").args(arguments).output();
    let output = output.map_err(|source| DockerError::Host { doing: doing.clone(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(DockerError::Host { doing, source: std::io::Error::other(words) })
}
