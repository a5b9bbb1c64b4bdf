//! Processes that are threads of one: what tests of many processes run on.

use std::cell::Cell;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::{Exchange, ExchangeError};

/// Bytes that a process has exchanged with the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Sent, once for each who hears it.
    pub sent: u64,
    /// Received.
    pub received: u64,
}

/// One of some threads.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    /// To each of all, this one too.
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
    traffic: Cell<Traffic>,
}

impl Threads {
    /// `size` of them, in the order of their ranks.
    pub fn new(size: usize) -> Vec<Self> {
        let mut to: Vec<Vec<_>> = (0..size).map(|_| Vec::new()).collect();
        let mut from: Vec<Vec<_>> = (0..size).map(|_| Vec::new()).collect();
        for outbox in &mut to {
            for inbox in &mut from {
                let (sender, receiver) = channel();
                outbox.push(sender);
                inbox.push(receiver);
            }
        }
        let ends = to.into_iter().zip(from).enumerate();
        let traffic = Cell::default;
        ends.map(|(rank, (to, from))| Self { rank, to, from, traffic: traffic() }).collect()
    }

    /// Runs `work` as each of `size` processes; what they gave, in the order of their ranks.
    ///
    /// # Panics
    /// If one of them does.
    pub fn run<T: Send>(size: usize, work: impl Fn(Self) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let work = &work;
            let threads = Self::new(size).into_iter().map(|own| scope.spawn(move || work(own)));
            let threads: Vec<_> = threads.collect();
            let ended = threads.into_iter().map(|thread| match thread.join() {
                Ok(given) => given,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            ended.collect()
        })
    }

    /// What was exchanged so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic.get()
    }

    fn send(&self, rank: usize, record: &[u8]) {
        if rank != self.rank {
            let traffic = self.traffic.get();
            self.traffic.set(Traffic { sent: traffic.sent + record.len() as u64, ..traffic });
        }
        // Who is gone is missed where something is to come from them.
        let _ = self.to[rank].send(record.to_vec());
    }

    fn receive(&self, rank: usize) -> Result<Vec<u8>, ExchangeError> {
        let record = self.from[rank].recv().map_err(|_| ExchangeError::Gone { rank })?;
        if rank != self.rank {
            let traffic = self.traffic.get();
            let received = traffic.received + record.len() as u64;
            self.traffic.set(Traffic { received, ..traffic });
        }
        Ok(record)
    }
}

impl Exchange for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn all_gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, ExchangeError> {
        (0..self.size()).for_each(|rank| self.send(rank, own));
        (0..self.size()).map(|rank| self.receive(rank)).collect()
    }

    fn broadcast(&self, record: &[u8]) -> Result<Vec<u8>, ExchangeError> {
        if self.rank == 0 {
            (0..self.size()).for_each(|rank| self.send(rank, record));
        }
        self.receive(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_in_the_order_of_ranks_and_rank_0_is_heard_by_all() {
        let heard = Threads::run(4, |own| {
            let rank = own.rank() as u8;
            let gathered = own.all_gather(&vec![rank; rank as usize]).unwrap();
            let told = own.broadcast(&[10 + rank]).unwrap();
            (gathered, told, own.traffic())
        });
        for (rank, (gathered, told, traffic)) in heard.into_iter().enumerate() {
            let expected: Vec<Vec<u8>> = (0..4).map(|r| vec![r; r as usize]).collect();
            assert_eq!((gathered, told), (expected, vec![10]));
            let sent = 3 * rank as u64 + if rank == 0 { 3 } else { 0 };
            let received = 6 - rank as u64 + if rank == 0 { 0 } else { 1 };
            assert_eq!(traffic, Traffic { sent, received });
        }
    }

    #[test]
    fn who_is_gone_is_named() {
        let told = Threads::run(3, |own| match own.rank() {
            1 => None,
            _ => own.all_gather(&[]).err(),
        });
        assert_eq!(told[0], Some(ExchangeError::Gone { rank: 1 }));
    }
}
