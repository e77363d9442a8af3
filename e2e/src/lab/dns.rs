//! DNS on loopback: one question, and a server that knows every name as 127.0.0.1.

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata::A};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

/// Where the server listens and the asker asks: the container's own loopback.
pub const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 53);

/// Asks the loopback server for the address of `name`.
pub fn ask(name: &str) -> io::Result<Ipv4Addr> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).map_err(io::Error::other)?, RecordType::A));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(SERVER)?;
    socket.send(&message.to_vec().map_err(io::Error::other)?)?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    let answer = Message::from_vec(&buffer[..length]).map_err(io::Error::other)?;
    let address = answer.answers.iter().find_map(|record| match &record.data {
        RData::A(A(address)) => Some(*address),
        _ => None,
    });
    address.ok_or_else(|| io::Error::other(format!("{name} has no address")))
}

/// Answers every A question with 127.0.0.1, for ever.
pub fn serve() -> io::Result<()> {
    let socket = UdpSocket::bind(SERVER)?;
    let mut buffer = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        let Ok(question) = Message::from_vec(&buffer[..length]) else { continue };
        let mut answer = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata.response_code = ResponseCode::NoError;
        for query in question.queries.clone() {
            let name = query.name().clone();
            answer.add_query(query);
            answer.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::LOCALHOST))));
        }
        socket.send_to(&answer.to_vec().map_err(io::Error::other)?, from)?;
    }
}
