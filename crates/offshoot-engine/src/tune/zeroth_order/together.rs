//! Steps that several processes make together.
//!
//! A step is shared in one of two ways, and both give the bits of one process alone:
//! ```text
//! examples   each runs its share of the batch at all points; gathered are the parts of the loss, a sum
//!            and a weight for each example, which every process adds up in the order of the examples
//! points     each runs the whole batch at its share of the points; gathered are the losses
//! ```
//! Process 0 answers the method and tells what it recorded; the others make the update of the record,
//! as if they replayed a trajectory. In a round of local steps nothing is shared but its end: the mean of
//! what each measured on examples of its own, weighted by how many it has, which process 0 makes.

use offshoot_methods::tune::{Plan, Probe, Record, Setting};
use serde::{Deserialize, Serialize};

use super::objective::{Part, Points, mean};
use super::trainer::ZerothOrderTrainer;
use crate::Error;
use crate::tune::Example;
use crate::tune::exchange::{Exchange, ExchangeError, Pieces, Writer, joined, share};

/// How the processes of a run share a step. No bit depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// Each its part of the examples, at all points.
    #[default]
    Examples,
    /// Each its part of the points, with all examples.
    Points,
}

/// What was measured, by point: the parts of its loss or the loss itself.
type Parts = Vec<Vec<Part>>;

impl ZerothOrderTrainer {
    /// The losses of `batch` at `probes`. All processes of a run have to ask for them.
    ///
    /// # Errors
    /// If an example is not what the objective takes, or the model cannot run it.
    pub fn losses(&mut self, probes: &[Probe], batch: &[&Example]) -> Result<Vec<f64>, Error> {
        // Those of a round have examples of their own.
        if self.exchange.size() == 1 || self.method.local_steps().is_some() {
            return Ok(self.parts(probes, batch)?.iter().map(|parts| mean(parts)).collect());
        }
        let exchange = std::rc::Rc::clone(&self.exchange);
        let before = self.forward.rows;
        let by_points = self.share == Share::Points || self.objective.is_of_whole_batches();
        let own = match by_points {
            true => {
                let own: Vec<Probe> = share(&*exchange, probes).into_iter().cloned().collect();
                let parts = self.parts(&own, batch)?;
                parts.iter().map(|parts| vec![Part { sum: mean(parts), weight: 1.0 }]).collect()
            }
            false => {
                let own: Vec<&Example> = share(&*exchange, batch).into_iter().copied().collect();
                self.parts(probes, &own)?
            }
        };
        let rows = self.forward.rows - before;
        let (all, total) = gathered(&*exchange, &own, rows as u64)?;
        self.rows_elsewhere += (total as usize).saturating_sub(rows);
        if by_points {
            let losses = all.into_iter().map(|parts| parts.into_iter().flatten().collect());
            let losses: Vec<Part> = joined(losses.collect(), probes.len())?;
            return Ok(losses.into_iter().map(|loss| loss.sum).collect());
        }
        let mut by_rank: Vec<_> = all.into_iter().map(Vec::into_iter).collect();
        let losses = probes.iter().map(|_| {
            let shares = by_rank.iter_mut().map(|parts| parts.next().unwrap_or_default());
            Ok(mean(&joined(shares.collect(), batch.len())?))
        });
        losses.collect()
    }

    /// The parts of the losses of `batch` at `probes`, by this process alone.
    fn parts(&mut self, probes: &[Probe], batch: &[&Example]) -> Result<Parts, Error> {
        if probes.is_empty() || batch.is_empty() {
            return Ok(vec![Vec::new(); probes.len()]);
        }
        let Self { space, forward, objective, .. } = self;
        let mut points = Points { forward, space: &mut **space, probes };
        objective.parts(&mut points, batch)
    }

    /// What the method makes of `losses`: process 0 asks it, and tells the others.
    pub(super) fn answer(&mut self, step: u32, rate: f64, losses: &[f64]) -> Result<Plan, Error> {
        if self.exchange.size() == 1 {
            return Ok(self.method.answer(losses));
        }
        if self.exchange.rank() == 0 {
            let plan = self.method.answer(losses);
            let told = match plan {
                Plan::Evaluate(_) => Vec::new(),
                Plan::Update(_) => record_bytes(self.method.record(), 0.0),
            };
            self.exchange.broadcast(&told)?;
            return Ok(plan);
        }
        let told = self.exchange.broadcast(&[])?;
        if told.is_empty() {
            return Ok(self.method.answer(losses));
        }
        let (record, _) = read_record(0, &told)?;
        Ok(Plan::Update(self.method.replay(step, rate, &record)?))
    }

    /// A round of local steps: the losses that this process saw.
    pub(super) fn round(
        &mut self,
        step: u32,
        rate: f64,
        batch: &[&Example],
        local_steps: u32,
    ) -> Result<Vec<f64>, Error> {
        // Each draws apart; the first as one alone would.
        let rank = self.exchange.rank() as u64;
        let seed = self.space.seed().wrapping_add(rank.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let setting = Setting { seed, layout: self.layout.clone(), decay: self.options.decay };
        let mut local = self.card.start(&self.options.options, &setting)?;
        let size = batch.len().div_ceil(local_steps as usize).max(1);
        let mut batches = batch.chunks(size).cycle();
        let mut all = Vec::new();
        let mut plan = local.begin(step, rate);
        while let Plan::Evaluate(probes) = plan {
            let losses = self.losses(&probes, batches.next().unwrap_or_default())?;
            plan = local.answer(&losses);
            all.extend(losses);
        }
        let record = averaged(&*self.exchange, self.examples, local.record())?;
        let update = self.method.replay(step, rate, &record)?;
        self.space.apply(step, &update)?;
        Ok(all)
    }
}

/// Everybody's parts by rank and point, and the rows that all have run.
fn gathered(
    exchange: &dyn Exchange,
    own: &Parts,
    rows: u64,
) -> Result<(Vec<Parts>, u64), ExchangeError> {
    let mut record = Writer::default();
    record.u64(rows);
    for parts in own {
        record.u64(parts.len() as u64);
        for part in parts {
            record.f64(part.sum);
            record.f64(part.weight);
        }
    }
    let (mut all, mut total) = (Vec::new(), 0);
    for (rank, record) in exchange.all_gather(&record.0)?.iter().enumerate() {
        let mut pieces = Pieces::of(rank, record);
        total += pieces.u64()?;
        let mut points = Vec::new();
        while !pieces.is_empty() {
            let count = pieces.u64()?;
            let part = |_| Ok(Part { sum: pieces.f64()?, weight: pieces.f64()? });
            points.push((0..count).map(part).collect::<Result<Vec<Part>, ExchangeError>>()?);
        }
        all.push(points);
    }
    Ok((all, total))
}

/// The mean of everybody's numbers, each weighted by its examples, as process 0 makes it: over ranks in
/// ascending order, in double precision. Who skipped the round has no weight in it.
fn averaged(exchange: &dyn Exchange, examples: u64, own: &Record) -> Result<Record, Error> {
    if exchange.size() == 1 {
        return Ok(own.clone());
    }
    let all = exchange.all_gather(&record_bytes(own, examples as f64))?;
    let told = match exchange.rank() {
        0 => {
            let all = all.iter().enumerate().map(|(rank, record)| read_record(rank, record));
            record_bytes(&mean_record(&all.collect::<Result<Vec<_>, _>>()?), 0.0)
        }
        _ => Vec::new(),
    };
    Ok(read_record(0, &exchange.broadcast(&told)?)?.0)
}

fn mean_record(all: &[(Record, f64)]) -> Record {
    let taken = || all.iter().filter(|(record, _)| !record.skipped);
    let total = taken().fold(0.0, |sum, (_, weight)| sum + weight);
    let count = taken().map(|(record, _)| record.numbers.len()).max().unwrap_or(0);
    if total == 0.0 {
        return Record { skipped: true, numbers: Vec::new() };
    }
    let number = |j: usize| {
        let sum = taken().fold(0.0, |sum, (record, weight)| {
            sum + weight * f64::from(record.numbers.get(j).copied().unwrap_or(0.0))
        });
        (sum / total) as f32
    };
    Record { skipped: false, numbers: (0..count).map(number).collect() }
}

const SKIPPED: u8 = 0;
const DENSE: u8 = 1;
const SPARSE: u8 = 2;

/// A record and a weight: whichever is shorter, all numbers, or those other than zero with their places.
fn record_bytes(record: &Record, weight: f64) -> Vec<u8> {
    let numbers = &record.numbers;
    let filled: Vec<(usize, f32)> =
        numbers.iter().copied().enumerate().filter(|(_, number)| number.to_bits() != 0).collect();
    let is_sparse = 6 * filled.len() < 4 * numbers.len() && numbers.len() <= 1 << 16;
    let kind = match (record.skipped, is_sparse) {
        (true, _) => SKIPPED,
        (false, true) => SPARSE,
        (false, false) => DENSE,
    };
    let mut written = Writer(vec![kind]);
    written.f64(weight);
    written.u64(numbers.len() as u64);
    if is_sparse {
        for (place, number) in filled {
            written.0.extend((place as u16).to_le_bytes());
            written.f32s(&[number]);
        }
    } else {
        written.f32s(numbers);
    }
    written.0
}

/// What [`record_bytes`] wrote.
fn read_record(rank: usize, bytes: &[u8]) -> Result<(Record, f64), ExchangeError> {
    /// Most numbers of a record: nothing is made of what is only claimed.
    const NUMBERS_MAX: u64 = 1 << 24;
    let mut pieces = Pieces::of(rank, bytes);
    let (kind, weight, count) = (pieces.u8()?, pieces.f64()?, pieces.u64()?);
    if kind > SPARSE || count > NUMBERS_MAX || !(weight.is_finite() && weight >= 0.0) {
        return Err(pieces.wrong("no record begins so"));
    }
    let mut numbers = vec![0.0; count as usize];
    match kind {
        SPARSE => {
            while !pieces.is_empty() {
                let (place, number) = (usize::from(pieces.u16()?), pieces.f32s(1)?);
                let slot = numbers.get_mut(place);
                *slot.ok_or_else(|| pieces.wrong("a number without a place"))? = number[0];
            }
        }
        _ => numbers = pieces.f32s(count as usize)?,
    }
    Ok((Record { skipped: kind == SKIPPED, numbers }, weight))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::Threads;

    fn record(numbers: &[f32]) -> Record {
        Record { skipped: false, numbers: numbers.to_vec() }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_in_whichever_form_is_shorter() {
        let mut pool = vec![0.0; 4096];
        pool[4095] = -0.0;
        pool[7] = f32::MIN_POSITIVE;
        let full: Vec<f32> = (0..4096).map(|i| i as f32 - 5.0).collect();
        let skipped = Record { skipped: true, numbers: Vec::new() };
        for (record, bytes) in [
            (record(&pool), 17 + 12),
            (record(&full), 17 + 4 * 4096),
            (record(&[0.25]), 17 + 4),
            (record(&[]), 17),
            (skipped, 17),
        ] {
            let written = record_bytes(&record, 3.0);
            assert_eq!(written.len(), bytes);
            let (read, weight) = read_record(0, &written).unwrap();
            let bits = |record: &Record| record.numbers.iter().map(|x| x.to_bits()).collect();
            let (a, b): (Vec<u32>, Vec<u32>) = (bits(&read), bits(&record));
            assert_eq!((a, read.skipped, weight), (b, record.skipped, 3.0));
            for cut in 0..written.len() {
                // Sparse entries may end anywhere between two.
                if written[0] != SPARSE || !(cut.saturating_sub(17)).is_multiple_of(6) || cut < 17 {
                    assert!(read_record(0, &written[..cut]).is_err(), "{cut}");
                }
            }
        }
        assert!(read_record(0, &[9; 17]).is_err());
        assert!(read_record(0, &[&[SPARSE][..], &[0; 16], &[1; 6]].concat()).is_err());
    }

    #[test]
    fn numbers_are_averaged_by_examples_and_who_skipped_has_no_weight() {
        let own =
            [record(&[1.0, 0.0]), record(&[4.0, 8.0]), Record { skipped: true, ..record(&[]) }];
        let found = Threads::run(3, |exchange| {
            let rank = exchange.rank();
            averaged(&exchange, [1, 3, 50][rank], &own[rank]).unwrap()
        });
        assert!(found.iter().all(|found| *found == record(&[3.25, 6.0])), "{found:?}");
        let none = Threads::run(2, |exchange| averaged(&exchange, 5, &own[2]).unwrap());
        assert!(none.iter().all(|found| found.skipped));
    }
}
