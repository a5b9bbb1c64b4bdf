//! Whether all processes hold the same weights.

use super::{Exchange, ExchangeError, Pieces};
use crate::Error;

/// A tensor's name and what tells its numbers from others: 64 bits, of which a change of any bit
/// changes half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    pub(crate) tensor: String,
    pub(crate) digest: u64,
}

/// 64 bits of the BLAKE3 of `numbers`, as they are in memory.
pub(crate) fn digest(numbers: &[f32]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for chunk in numbers.chunks(4096) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|number| number.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// Compares what all processes hold, `own` being that of this one.
///
/// # Errors
/// [`ExchangeError::Disagree`], the same in all of them.
pub(crate) fn agree(exchange: &dyn Exchange, own: &[Fingerprint]) -> Result<(), Error> {
    let record: Vec<u8> = own.iter().flat_map(|tensor| tensor.digest.to_le_bytes()).collect();
    let all = exchange.all_gather(&record)?;
    for (place, tensor) in own.iter().enumerate() {
        let mut first = None;
        for (rank, record) in all.iter().enumerate() {
            let found = record.get(8 * place..).unwrap_or_default();
            let found = Pieces::of(rank, found).u64()?;
            if *first.get_or_insert(found) != found {
                let tensor = tensor.tensor.clone();
                return Err(ExchangeError::Disagree { rank, tensor }.into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Threads;
    use super::*;

    #[test]
    fn a_bit_in_one_process_is_found_by_all_with_the_first_tensor() {
        let told = Threads::run(3, |own| {
            let mut tensors = [vec![0.5; 10], vec![0.5; 5000], vec![0.5; 3]];
            if own.rank() == 2 {
                tensors[1][4999] = f32::from_bits(0.5f32.to_bits() ^ 1);
                tensors[2][0] = 0.0;
            }
            let named = tensors.iter().zip(["a", "b", "c"]);
            let own_tensors: Vec<_> = named
                .map(|(t, name)| Fingerprint { tensor: name.to_owned(), digest: digest(t) })
                .collect();
            agree(&own, &own_tensors[..1]).unwrap();
            agree(&own, &own_tensors).unwrap_err().to_string()
        });
        for told in told {
            assert!(told.starts_with("process 2 holds other weights") && told.contains("\"b\""));
        }
    }
}
