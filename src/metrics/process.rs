//! What the kernel says of this process, under the names that Prometheus' own clients use.

/// The page for Prometheus. Empty where there is no `/proc`.
#[must_use]
pub fn process() -> String {
    #[cfg(target_os = "linux")]
    return linux::page();
    #[cfg(not(target_os = "linux"))]
    String::new()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{fmt::Write as _, fs, sync::OnceLock, time::SystemTime};

    use rustix::{
        param::{clock_ticks_per_second, page_size},
        process::{Resource, getrlimit},
        time::{ClockId, clock_gettime},
    };

    /// What cannot be read is left out.
    pub(super) fn page() -> String {
        let stat = fs::read_to_string("/proc/self/stat").ok();
        let stat = stat.as_deref().and_then(Stat::of);
        let started = stat.as_ref().map(|stat| started(stat.started));
        // The folder itself is open while it is read.
        let open = fs::read_dir("/proc/self/fd").map(|open| open.count().saturating_sub(1) as f64);
        let most = getrlimit(Resource::Nofile).current.map(|most| most as f64);
        let of_stat = |number: fn(&Stat) -> f64| stat.as_ref().map(number);
        let mut page = String::new();
        for (name, kind, help, value) in [
            ("process_cpu_seconds_total", "counter", "Processor time, user and system.", of_stat(|stat| stat.cpu)),
            ("process_max_fds", "gauge", "File descriptors it may have open.", most),
            ("process_open_fds", "gauge", "File descriptors it has open.", open.ok()),
            ("process_resident_memory_bytes", "gauge", "Memory it takes.", of_stat(|stat| stat.resident)),
            ("process_start_time_seconds", "gauge", "When it started, since 1970.", started),
            ("process_threads", "gauge", "Its threads.", of_stat(|stat| stat.threads)),
            ("process_virtual_memory_bytes", "gauge", "Addresses it has reserved.", of_stat(|stat| stat.reserved)),
        ] {
            if let Some(value) = value {
                write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n")
                    .expect("a String takes all that is written to it");
            }
        }
        page
    }

    /// `/proc/self/stat`, in seconds and bytes.
    #[derive(Debug, PartialEq)]
    struct Stat {
        cpu: f64,
        threads: f64,
        /// Since the machine was booted.
        started: f64,
        reserved: f64,
        resident: f64,
    }

    impl Stat {
        /// The second field is the program's name, which may hold anything. Those behind it are counted from 3 in proc(5).
        fn of(text: &str) -> Option<Self> {
            let (_, behind) = text.rsplit_once(')')?;
            let fields: Vec<&str> = behind.split_ascii_whitespace().collect();
            let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
            let ticks = clock_ticks_per_second() as f64;
            Some(Self {
                cpu: (field(14)? + field(15)?) / ticks,
                threads: field(20)?,
                started: field(22)? / ticks,
                reserved: field(23)?,
                resident: field(24)? * page_size() as f64,
            })
        }
    }

    /// When the process started, in seconds since 1970, from when after the boot it did. By the clocks, for `/proc/stat` is
    /// not to be seen under systemd's `ProcSubset=pid`; and once, for the clocks drift apart.
    fn started(after_boot: f64) -> f64 {
        static STARTED: OnceLock<f64> = OnceLock::new();
        *STARTED.get_or_init(|| {
            let up = clock_gettime(ClockId::Boottime);
            let up = up.tv_sec as f64 + up.tv_nsec as f64 / 1e9;
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            // As exact as the kernel tells the start.
            let ticks = clock_ticks_per_second() as f64;
            ((now - (up - after_boot)) * ticks).round() / ticks
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_fields_are_counted_from_behind_the_name() {
            let text = "7 (a) b (c)) S 1 7 7 0 -1 4 5 0 0 0 250 50 0 0 20 0 9 0 300 4096 2 18446744073709551615 1 1";
            let (ticks, page) = (clock_ticks_per_second() as f64, page_size() as f64);
            let want = Stat {
                cpu: 300.0 / ticks,
                threads: 9.0,
                started: 300.0 / ticks,
                reserved: 4096.0,
                resident: 2.0 * page,
            };
            assert_eq!(Stat::of(text), Some(want));
            for text in ["", "7 (a) S 1", "7 (a", &text.replace("4096", "x")] {
                assert_eq!(Stat::of(text), None, "{text}");
            }
        }

        #[test]
        fn what_it_says_is_of_this_process() {
            let page = page();
            let number = |name: &str| -> f64 {
                let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
                line.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
            };
            assert!((1.0..1e6).contains(&number("process_open_fds")));
            assert!(number("process_max_fds") >= number("process_open_fds"));
            assert!((1e6..1e12).contains(&number("process_resident_memory_bytes")));
            assert!(number("process_virtual_memory_bytes") >= number("process_resident_memory_bytes"));
            assert!(number("process_threads") >= 1.0 && number("process_cpu_seconds_total") >= 0.0);
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
            let age = now - number("process_start_time_seconds");
            assert!((-5.0..86_400.0).contains(&age), "{age} s old");
        }
    }
}
