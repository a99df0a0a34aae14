//! Which process this is, told so that another one on the same machine can see that it is dead.
//!
//! A lease ends some seconds after its holder; whoever follows on the same machine need not wait
//! for that. "Dead" is only said where it can be known: the same boot of the same kernel, the same
//! namespaces of processes and of time, the same user (another user's processes may be hidden). A
//! number that was given to a newer process is told by when that one began. Used by the fence.

use std::fs;
use std::os::unix::fs::MetadataExt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A process, by what no other process on any machine has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessName {
    /// Boot, namespaces and user: where `pid` means something.
    place: String,
    /// Its number there.
    pid: u32,
    /// When it began, in the kernel's ticks since boot.
    began: u64,
}

impl ProcessName {
    /// This process; `None` where the system does not tell.
    pub fn own() -> Option<Self> {
        let pid = std::process::id();
        Some(ProcessName {
            place: place()?,
            pid,
            began: Stat::of(pid)?.began,
        })
    }

    /// Whether it is known that it runs no more.
    pub fn is_dead(&self) -> bool {
        if place().as_deref() != Some(&self.place[..]) {
            return false;
        }
        match fs::read_to_string(stat_file(self.pid)) {
            Ok(text) => match Stat::parse(&text) {
                Some(stat) => stat.began != self.began || stat.has_ended(),
                None => false,
            },
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        }
    }
}

/// Two processes that see the same here see each other.
fn place() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = |name: &str| {
        let target = fs::read_link(format!("/proc/self/ns/{name}")).ok()?;
        Some(target.display().to_string())
    };
    let user = fs::metadata("/proc/self").ok()?.uid();
    let time = namespace("time").unwrap_or_default();
    Some(format!(
        "{} {} {time} user {user}",
        boot.trim(),
        namespace("pid")?
    ))
}

fn stat_file(pid: u32) -> String {
    format!("/proc/{pid}/stat")
}

/// What the kernel says of a process.
struct Stat {
    state: char,
    began: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Stat::parse(&fs::read_to_string(stat_file(pid)).ok()?)
    }

    /// The name of the program stands in parentheses and may hold any character.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        Some(Stat {
            state: fields.next()?.chars().next()?,
            // The 22nd field; the state is the third.
            began: fields.nth(18)?.parse().ok()?,
        })
    }

    /// A process that nobody has waited for yet does nothing more.
    fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn name_of(pid: u32) -> ProcessName {
        ProcessName {
            place: place().unwrap(),
            pid,
            began: Stat::of(pid).unwrap().began,
        }
    }

    #[test]
    fn a_process_lives_until_it_has_ended_even_if_nobody_has_waited_for_it() {
        assert!(!ProcessName::own().unwrap().is_dead());
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let name = name_of(child.id());
        assert!(!name.is_dead());
        child.kill().unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !name.is_dead() {
            assert!(std::time::Instant::now() < end, "a zombie counts as alive");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.wait().unwrap();
        assert!(name.is_dead());
    }

    #[test]
    fn a_number_that_was_given_again_is_told_by_when_its_process_began() {
        let own = ProcessName::own().unwrap();
        let older = ProcessName {
            began: own.began - 1,
            ..own
        };
        assert!(older.is_dead());
    }

    #[test]
    fn nothing_is_known_of_a_process_elsewhere() {
        let own = ProcessName::own().unwrap();
        for place in [String::new(), format!("{} x", own.place)] {
            let elsewhere = ProcessName {
                place,
                pid: u32::MAX,
                began: 0,
            };
            assert!(!elsewhere.is_dead());
        }
    }

    #[test]
    fn the_name_of_a_program_does_not_confuse() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        let stat = Stat::parse(&format!("12 (a) b (c) {fields}")).unwrap();
        assert_eq!((stat.state, stat.began), ('S', 4711));
        for damaged in ["", "12 a S", "12 (a) S 1 2", "12 (a)"] {
            assert!(Stat::parse(damaged).is_none(), "{damaged}");
        }
    }
}
