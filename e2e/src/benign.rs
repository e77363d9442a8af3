//! What an administrator or the application itself does on an ordinary day, through the same door that the
//! attacker uses: none of it may be found.

use crate::{attack, http};
use anyhow::{Result, ensure};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Lines of shell, each of which ends with `done` when it worked.
const LINES: [&str; 12] = [
    "ls -la / /etc /bin | grep -c busybox > /dev/null; ls /www | sort -r | head -n 3 > /dev/null; echo done",
    "grep -r open /www | cut -d: -f2 | tr a-z A-Z | sort | uniq -c | wc -l > /dev/null && echo done",
    "wget -q -O - http://127.0.0.1:8080/ | grep -q open && echo done",
    "mkdir -p /tmp/work && tar -C / -cf /tmp/work/etc.tar etc www && gzip -f /tmp/work/etc.tar && echo done",
    "gzip -dc /tmp/work/etc.tar.gz | tar -tf - | grep -q passwd && echo done",
    "mkdir -p /tmp/back && tar -xzf /tmp/work/etc.tar.gz -C /tmp/back && cmp /etc/passwd /tmp/back/etc/passwd && echo done",
    "awk -F: '{ users[$1] = $3 } END { for (u in users) print u, users[u] | \"sort\" }' /etc/passwd > /tmp/work/users && echo done",
    "for n in 1 2 3; do date >> /tmp/work/cron.log; /bin/busybox usleep 100000; done; wc -l < /tmp/work/cron.log > /dev/null && echo done",
    "sh -c 'cat /www/index.html | sed s/open/closed/ | tee /tmp/work/page | md5sum' > /dev/null && echo done",
    "printf '#!/bin/sh\\nset -e\\nfind /www -type f | xargs cat | wc -c > /tmp/work/size\\n' > /tmp/work/job.sh; sh /tmp/work/job.sh && echo done",
    "df > /dev/null; du -s /www > /dev/null; uptime > /dev/null; env | sort > /dev/null; echo done",
    "sed -i s/closed/open/ /tmp/work/page; cp /tmp/work/page /www/copy.html; mv /www/copy.html /www/other.html; rm -rf /tmp/work /tmp/back /www/other.html; echo done",
];

/// Does it `rounds` times, with a health check every second beside it.
pub async fn day(address: Ipv4Addr, rounds: usize) -> Result<()> {
    let url = format!("http://{address}:8080/");
    let check = tokio::spawn(async move {
        let mut checks = tokio::time::interval(Duration::from_secs(1));
        loop {
            checks.tick().await;
            // Its failure is the caller's own failure a moment later.
            let _ = http::send("GET", &url, "").await;
        }
    });
    let worked = async {
        for _ in 0..rounds {
            for line in LINES {
                let said = attack::inject(address, line).await?;
                ensure!(said.trim_end() == "done", "{line}\nsaid: {said}");
            }
        }
        Ok(())
    }
    .await;
    check.abort();
    worked
}
