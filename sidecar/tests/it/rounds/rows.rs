//! Which keys and values the load writes.

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;

/// Few enough that transactions meet on them and versions pile up.
const KEYS: usize = 300;
/// Lengths around the limit of values that a write record holds itself, 255, and far above.
const LENGTHS: [usize; 14] = [
    0, 1, 7, 100, 100, 250, 254, 255, 256, 257, 258, 1000, 5000, 70_000,
];

/// All keys, sorted: plain ones, binary ones of every length modulo the 8 bytes of a key group,
/// and keys of tables and of their schema as TiDB forms them.
pub fn keys() -> Vec<Bytes> {
    let mut keys: Vec<Bytes> = (0..KEYS).map(|n| key(n).into()).collect();
    keys.sort();
    keys
}

fn key(n: usize) -> Vec<u8> {
    let number = (n as u16).to_be_bytes();
    let mut key = match n % 10 {
        0 | 1 => [b"t\x80\0\0\0\0\0\0".as_slice(), &[5 + (n % 3) as u8], b"_r"].concat(),
        2 => b"mDB:1".to_vec(),
        3 => vec![0; n % 17],
        4 => vec![0xFF; 1 + n % 17],
        _ => b"soak/".to_vec(),
    };
    key.extend(number);
    key.extend(std::iter::repeat_n(b'x', n % 13));
    key
}

/// A value: rarely a long one, half of it compressible.
pub fn value(rng: &mut StdRng) -> Bytes {
    // The last length costs as much as hundreds of others.
    let kinds = if rng.random_ratio(1, 20) {
        LENGTHS.len()
    } else {
        LENGTHS.len() - 1
    };
    let length = LENGTHS[rng.random_range(0..kinds)];
    let mut value = vec![b'v'; length];
    rng.fill(&mut value[..length / 2]);
    value.into()
}
