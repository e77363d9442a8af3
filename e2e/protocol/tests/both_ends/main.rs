//! Both ends of the agent protocol, over real TLS, with a real store; ECS and STS are loopback servers.

mod aws;
mod hostile;
mod relay;
mod world;
