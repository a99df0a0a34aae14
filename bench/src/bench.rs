//! The method: rounds in which every figure of a bench is measured once, best of all rounds.
//!
//! Interleaving matters: the cores of a virtual machine run at different speeds from one second to
//! the next, so the limits are measured in the same seconds as the path that is compared with them.

use std::time::{Duration, Instant};

use crate::Result;
use crate::clock::rate;

/// How long a bench is repeated.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// Wall time; at least two rounds are made.
    pub wall: Duration,
}

/// One run over the bench's bytes: the CPU time it took.
type Run = Box<dyn FnMut() -> Result<Duration>>;

/// A bare library call over the bench's bytes.
pub struct Limit {
    name: &'static str,
    run: Run,
    best: Duration,
}

/// Code of ours over the same bytes, and the limits that it cannot do without.
pub struct Path {
    name: String,
    needs: Vec<&'static str>,
    run: Run,
    best: Duration,
}

/// Limits, stages and the whole path over one set of records.
pub struct Bench {
    name: String,
    bytes: u64,
    limits: Vec<Limit>,
    paths: Vec<Path>,
}

impl Bench {
    /// A bench over `bytes` of records.
    pub fn new(name: String, bytes: u64) -> Self {
        Bench {
            name,
            bytes,
            limits: Vec::new(),
            paths: Vec::new(),
        }
    }

    /// Adds a limit.
    pub fn limit(&mut self, name: &'static str, run: impl FnMut() -> Result<Duration> + 'static) {
        self.limits.push(Limit {
            name,
            run: Box::new(run),
            best: Duration::MAX,
        });
    }

    /// Adds a stage: some of the path, compared with some of the limits.
    pub fn stage(
        &mut self,
        name: &str,
        needs: &[&'static str],
        run: impl FnMut() -> Result<Duration> + 'static,
    ) {
        self.paths.push(Path {
            name: format!("{}/{name}", self.name),
            needs: needs.to_vec(),
            run: Box::new(run),
            best: Duration::MAX,
        });
    }

    /// Adds the whole path, compared with all limits but `not`.
    pub fn whole(&mut self, not: &[&'static str], run: impl FnMut() -> Result<Duration> + 'static) {
        let names = self.limits.iter().map(|limit| limit.name);
        self.paths.push(Path {
            name: self.name.clone(),
            needs: names.filter(|name| !not.contains(name)).collect(),
            run: Box::new(run),
            best: Duration::MAX,
        });
    }

    /// Measures and prints.
    pub fn run(mut self, rounds: Rounds) -> Result<()> {
        let began = Instant::now();
        let mut round = 0;
        while round < 2 || began.elapsed() < rounds.wall {
            for limit in &mut self.limits {
                limit.best = limit.best.min((limit.run)()?);
            }
            for path in &mut self.paths {
                path.best = path.best.min((path.run)()?);
            }
            round += 1;
        }
        for limit in &self.limits {
            let name = format!("{}/{}", self.name, limit.name);
            println!("limit {name} {:.1}", rate(self.bytes, limit.best));
        }
        for path in &self.paths {
            let composed = self.composed(&path.needs);
            let (limit, reached) = (rate(self.bytes, composed), rate(self.bytes, path.best));
            println!("limit {} {limit:.1}", path.name);
            println!("bench {} {reached:.1} {:.2}", path.name, reached / limit);
        }
        Ok(())
    }

    /// Best time of all `needs` one after another: the same as `1 / Σ (1 / rate)`.
    fn composed(&self, needs: &[&str]) -> Duration {
        let needed = self.limits.iter().filter(|l| needs.contains(&l.name));
        needed.map(|limit| limit.best).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_a_path_is_the_sum_of_the_best_times_of_what_it_needs() {
        let mut bench = Bench::new("path".to_owned(), 1_000_000);
        let mut first = [30u64, 10].into_iter();
        let next = move || Ok(Duration::from_millis(first.next().unwrap_or(99)));
        bench.limit("a", next);
        bench.limit("b", || Ok(Duration::from_millis(5)));
        for _ in 0..2 {
            for limit in &mut bench.limits {
                limit.best = limit.best.min((limit.run)().unwrap());
            }
        }
        assert_eq!(bench.composed(&["a", "b"]), Duration::from_millis(15));
        assert_eq!(bench.composed(&["b"]), Duration::from_millis(5));
    }
}
