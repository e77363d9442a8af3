//! Ring sizes from a memory budget: the pages of a ring count against the agent's memory limit.

/// Bytes of each ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSizes {
    /// exec, fork, exit.
    pub process: u32,
    /// connect, accept, listen.
    pub network: u32,
    /// DNS messages.
    pub dns: u32,
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// The least that a ring is shrunk to: a power of two, and whole pages of 64 KiB (arm64).
const LEAST: u32 = 64 * 1024;
/// Beyond this size, a ring only hides that the agent is behind.
const MOST: u64 = 16 * MIB;

impl RingSizes {
    /// What the design asks for on a machine with so many CPUs.
    pub fn wanted(cpus: u64) -> Self {
        let other = ring(MIB.max(512 * KIB * cpus.max(1)));
        Self { process: ring(4 * MIB), network: other, dns: other }
    }

    /// All rings together.
    pub fn total(&self) -> u64 {
        u64::from(self.process) + u64::from(self.network) + u64::from(self.dns)
    }

    /// Halves the largest ring until all together take at most 40 % of the limit, or each is at
    /// its least.
    pub fn within(mut self, memory_limit: Option<u64>) -> Self {
        let Some(limit) = memory_limit else { return self };
        let budget = limit / 10 * 4;
        while self.total() > budget {
            let largest = self.process.max(self.network).max(self.dns);
            if largest <= LEAST {
                break;
            }
            let shrunk =
                [&mut self.dns, &mut self.network, &mut self.process].into_iter().find(|size| **size == largest);
            if let Some(size) = shrunk {
                *size /= 2;
            }
        }
        self
    }
}

fn ring(bytes: u64) -> u32 {
    u32::try_from(bytes.min(MOST).next_power_of_two()).unwrap_or(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_limit_the_design_is_followed() {
        let sizes = RingSizes::wanted(2);
        assert_eq!(sizes, RingSizes { process: 4 << 20, network: 1 << 20, dns: 1 << 20 });
        assert_eq!(sizes.within(None), sizes);
        assert_eq!(RingSizes::wanted(6).network, 4 << 20, "3 MiB is rounded up");
        assert_eq!(RingSizes::wanted(4096).network, 16 << 20);
    }

    #[test]
    fn rings_fit_40_percent_of_the_limit() {
        for limit in [8u64 << 20, 16 << 20, 64 << 20, 256 << 20] {
            let sizes = RingSizes::wanted(64).within(Some(limit));
            assert!(sizes.total() <= limit / 10 * 4, "{limit}: {sizes:?}");
            assert!(sizes.process.is_power_of_two() && sizes.network.is_power_of_two());
        }
        let least = RingSizes::wanted(64).within(Some(0));
        assert_eq!(least, RingSizes { process: LEAST, network: LEAST, dns: LEAST });
    }
}
