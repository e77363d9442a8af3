//! The miner's stand-in: takes the arguments of a well-known miner, resolves its pool's name, logs
//! in by Stratum, and then sleeps instead of hashing.

use super::dns;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

/// `-o [stratum+tcp://]HOST:PORT`; stays for `--seconds N` (default 20) once it is logged in.
pub fn run(args: &[String]) -> io::Result<()> {
    let value = |flag: &str| args.iter().position(|a| a == flag).and_then(|at| args.get(at + 1));
    let pool = value("-o").ok_or_else(|| io::Error::other("-o HOST:PORT is missing"))?;
    let pool = pool.strip_prefix("stratum+tcp://").unwrap_or(pool);
    let (host, port) = pool.rsplit_once(':').ok_or_else(|| io::Error::other("no port in -o"))?;
    let port: u16 = port.parse().map_err(io::Error::other)?;
    let seconds = value("--seconds").and_then(|s| s.parse().ok()).unwrap_or(20);
    let address = match host.parse() {
        Ok(address) => address,
        Err(_) => IpAddr::V4(dns::ask(host)?),
    };
    let mut stream = TcpStream::connect((address, port))?;
    writeln!(stream, r#"{{"id":1,"method":"login","params":{{"login":"x","pass":"x","agent":"stand-in"}}}}"#)?;
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    println!("pool answered: {}", line.trim_end());
    std::thread::sleep(Duration::from_secs(seconds));
    Ok(())
}
