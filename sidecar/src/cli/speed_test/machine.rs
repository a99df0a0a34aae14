//! Stages of backup and restore that need no storage, each on one thread.

use std::hint::black_box;
use std::time::{Duration, Instant};

use pitr_format::{compress, digest};
use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::codes::Code;
use crate::failure::Failure;

/// Bytes that a stage works on at a time: more than a core's caches, as slices are.
const SAMPLE: usize = 8 << 20;

/// One stage.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Megabytes (10^6) of input a second.
    pub mb_per_second: f64,
    /// The same as a part of the memory copy.
    pub of_memory_copy: f64,
}

/// Measures all stages, the memory copy first, each for about `time`.
pub fn measure(time: Duration) -> Result<Vec<Stage>, Failure> {
    let sample = sample(SAMPLE, 1);
    let mut copy = vec![0; SAMPLE];
    let memory = rate(time, || copy.copy_from_slice(black_box(&sample)));
    black_box(&copy);
    let crc64 = rate(time, || {
        black_box(digest::crc64(black_box(&sample)));
    });
    let sha256 = rate(time, || {
        black_box(Sha256::digest(black_box(&sample)));
    });
    let mut failed = None;
    let mut packed = Vec::new();
    let zstd = rate(time, || match compress::compress(black_box(&sample)) {
        Ok(bytes) => packed = bytes,
        Err(error) => failed = Some(error),
    });
    let unzstd = rate(time, || {
        match compress::decompress(&packed, SAMPLE as u64) {
            Ok(bytes) => {
                black_box(bytes);
            }
            Err(error) => failed = Some(error),
        }
    });
    if let Some(error) = failed {
        return Err(Failure::from_error(Code::Internal, &error));
    }
    let stage = |(name, mb_per_second): (&str, f64)| Stage {
        name: name.to_owned(),
        mb_per_second,
        of_memory_copy: mb_per_second / memory,
    };
    let rates = [
        ("memory copy", memory),
        ("crc64", crc64),
        ("sha256", sha256),
        ("zstd 1 compress", zstd),
        ("zstd decompress", unzstd),
    ];
    Ok(rates.into_iter().map(stage).collect())
}

/// MB/s of `work`, which handles [`SAMPLE`] bytes; at least one round, after one that warms up.
fn rate(time: Duration, mut work: impl FnMut()) -> f64 {
    work();
    let (began, mut rounds) = (Instant::now(), 0.0);
    loop {
        work();
        rounds += 1.0;
        let elapsed = began.elapsed();
        if elapsed >= time {
            return rounds * SAMPLE as f64 / 1e6 / elapsed.as_secs_f64().max(1e-9);
        }
    }
}

/// Bytes of which one half repeats and the other does not, so that they compress about as records
/// do. Another `seed` gives other bytes.
pub fn sample(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
        bytes.extend_from_slice(b"t\x80\0\0\0\0\0\x05");
    }
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_has_a_speed_and_its_ratio() {
        let stages = measure(Duration::from_millis(1)).unwrap();
        assert_eq!(stages.len(), 5);
        for stage in &stages {
            assert!(stage.mb_per_second > 0.0 && stage.mb_per_second.is_finite());
            let ratio = stage.mb_per_second / stages[0].mb_per_second;
            assert!((stage.of_memory_copy - ratio).abs() < 1e-9, "{stage:?}");
        }
    }

    #[test]
    fn samples_compress_to_about_a_half_and_differ_by_seed() {
        let one = sample(1 << 20, 1);
        assert_eq!(one.len(), 1 << 20);
        let packed = compress::compress(&one).unwrap().len();
        assert!((1 << 18..3 << 18).contains(&packed), "{packed}");
        assert_ne!(one, sample(1 << 20, 2));
    }
}
