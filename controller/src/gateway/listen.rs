//! The door: limits, proxy protocol, TLS. Nothing of HTTP is read before these.

use super::limits::{Connection, Connections};
use crate::cidr::Cidr;
use crate::tally::Tally;
use axum::Extension;
use axum_server::accept::Accept;
use futures_util::future::BoxFuture;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tower_layer::Layer;

/// Who is at the other end of a connection; lives as long as the connection does.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address: the socket's, or the one that a trusted proxy names.
    pub address: IpAddr,
    _connection: Arc<Connection>,
}

/// Accepts a connection: bounded in number, its true source known.
#[derive(Clone, Debug)]
pub struct Door {
    /// Counts open connections.
    pub connections: Connections,
    /// Proxies whose word on the source is taken; each of their connections must begin with a proxy
    /// protocol v2 header.
    pub proxies: Arc<[Cidr]>,
    /// Counts what is turned away.
    pub tally: Arc<Tally>,
}

impl<S: Send + 'static> Accept<TcpStream, S> for Door {
    type Stream = TcpStream;
    type Service = <Extension<Peer> as Layer<S>>::Service;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let door = self.clone();
        Box::pin(async move {
            let (stream, peer) = door.enter(stream).await?;
            Ok((stream, Extension(peer).layer(service)))
        })
    }
}

impl Door {
    async fn enter(&self, mut stream: TcpStream) -> io::Result<(TcpStream, Peer)> {
        let turned_away = |why: &'static str| {
            self.tally.one(why);
            io::Error::other(why)
        };
        let permit = self.connections.permit().ok_or_else(|| turned_away("ConnectionsFull"))?;
        stream.set_nodelay(true)?;
        let socket = stream.peer_addr()?.ip().to_canonical();
        let mut address = socket;
        if self.proxies.iter().any(|proxy| proxy.contains(socket)) {
            let named = tokio::time::timeout(Duration::from_secs(5), proxied(&mut stream)).await;
            address = match named {
                Ok(Ok(named)) => named.unwrap_or(socket),
                _ => return Err(turned_away("ProxyHeaderBad")),
            };
        }
        let connection =
            self.connections.open(address, permit).ok_or_else(|| turned_away("ConnectionsOfAddressFull"))?;
        Ok((stream, Peer { address, _connection: Arc::new(connection) }))
    }
}

/// First bytes of a proxy protocol v2 header (haproxy's proxy-protocol.txt, section 2.2).
const PROXY_V2: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Longest address block that is read. A network load balancer sends addresses and a few TLVs.
const LONGEST_BLOCK: usize = 2048;

/// Reads exactly one proxy protocol v2 header. `None` where the proxy speaks for itself (LOCAL).
async fn proxied(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let mut head = [0u8; 16];
    stream.read_exact(&mut head).await?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "not a proxy protocol v2 header");
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if head[..12] != PROXY_V2 || head[12] >> 4 != 2 || length > LONGEST_BLOCK {
        return Err(bad());
    }
    let mut block = vec![0u8; length];
    stream.read_exact(&mut block).await?;
    match (head[12] & 0xf, head[13] >> 4) {
        (0, _) => Ok(None),
        (1, 1) => {
            let source: [u8; 4] = block.get(..4).and_then(|b| b.try_into().ok()).ok_or_else(bad)?;
            if block.len() < 12 { Err(bad()) } else { Ok(Some(IpAddr::V4(Ipv4Addr::from(source)))) }
        }
        (1, 2) => {
            let source: [u8; 16] = block.get(..16).and_then(|b| b.try_into().ok()).ok_or_else(bad)?;
            if block.len() < 36 { Err(bad()) } else { Ok(Some(IpAddr::V6(Ipv6Addr::from(source)).to_canonical())) }
        }
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let mut bytes = PROXY_V2.to_vec();
        bytes.extend([0x20 | command, family << 4 | 1]);
        bytes.extend(u16::try_from(block.len()).unwrap().to_be_bytes());
        bytes.extend(block);
        bytes
    }

    #[tokio::test]
    async fn the_source_is_what_the_header_says_and_not_a_byte_more_is_read() {
        let mut block = vec![10, 1, 2, 3, 10, 9, 9, 9, 0x1f, 0x90, 1, 187];
        block.extend([0xEA, 0, 2, 1, 2]); // a TLV
        let mut bytes = header(1, 1, &block);
        bytes.extend(b"TLS");
        let mut reader = bytes.as_slice();
        assert_eq!(proxied(&mut reader).await.unwrap(), Some("10.1.2.3".parse().unwrap()));
        assert_eq!(reader, b"TLS");
        assert_eq!(proxied(&mut header(0, 0, &[]).as_slice()).await.unwrap(), None, "a health check");
        let mut six = [0u8; 36];
        six[15] = 1;
        assert_eq!(proxied(&mut header(1, 2, &six).as_slice()).await.unwrap(), Some("::1".parse().unwrap()));
    }

    #[tokio::test]
    async fn garbage_is_refused() {
        for bytes in [
            b"GET / HTTP/1.1\r\nhost: x".to_vec(),
            header(1, 1, &[10, 0, 0, 1]),
            header(1, 3, &[0; 216]),
            header(7, 1, &[0; 12]),
            header(1, 1, &[0; 12])[..20].to_vec(),
            header(1, 1, &[0; LONGEST_BLOCK + 1]),
        ] {
            assert!(proxied(&mut bytes.as_slice()).await.is_err());
        }
    }
}
