//! How much memory there is for what clients bring.

use std::{fs, path::Path};

use super::{ConfigError, parse};

/// The least that is of use, in MiB.
const LEAST_MB: u64 = 256;
/// Of the memory that there is, what is taken unless it is set.
const PART: u64 = 4;

/// Bytes, from `VECMILL_MEMORY_MB` or a part of what this process may take.
pub(super) fn memory(given: Option<&str>) -> Result<usize, ConfigError> {
    let megabytes = match given {
        Some(given) => parse::integer("VECMILL_MEMORY_MB", given, LEAST_MB..=1 << 30)?,
        None => (there_is().unwrap_or(0) / (PART << 20)).max(LEAST_MB),
    };
    Ok(usize::try_from(megabytes << 20).unwrap_or(usize::MAX))
}

/// The least of the machine's memory and the limits of the control groups (cgroups(7)) that this
/// process is in.
fn there_is() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.as_deref().and_then(total_of).map(|kib| kib << 10);
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    let limits = Path::new(group).ancestors().filter_map(|group| {
        let limit = fs::read_to_string(root.join(group).join("memory.max")).ok()?;
        // `max` is none.
        limit.trim().parse().ok()
    });
    limits.chain(machine).min()
}

/// The total of `/proc/meminfo`, in KiB.
fn total_of(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_memory_is_what_is_set_or_a_part_of_what_there_is() {
        assert_eq!(memory(Some("300")).unwrap(), 300 << 20);
        assert!(memory(Some("255")).unwrap_err().to_string().contains("VECMILL_MEMORY_MB"));
        assert!(memory(None).unwrap() >= 256 << 20);
        assert_eq!(total_of("MemTotal:       24607300 kB\nMemFree: 1 kB\n"), Some(24_607_300));
    }
}
