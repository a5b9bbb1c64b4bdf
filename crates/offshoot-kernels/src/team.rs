//! A team of threads that runs one short job after another with little ceremony.
//!
//! A decode step is some hundred products of tens of microseconds. A team member therefore spins
//! for its next job a while, then yields the processor between looks, and sleeps only when nothing
//! came for longer. The caller is member 0 and works too.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Looks at the next-job counter before a waiting member begins to yield.
const SPINS: u32 = 2_000;
/// Yields before a waiting member goes to sleep.
const YIELDS: u32 = 2_000;

/// Whether team members are tied to processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pinning {
    /// The system places members as it likes.
    #[default]
    Free,
    /// Member `i` runs on the `i`-th processor that this process may use. Member 0 is the caller's
    /// thread, which stays pinned.
    Pinned,
}

/// A job, its type erased: what to call and with which closure.
struct Job {
    call: unsafe fn(*const (), usize),
    data: *const (),
}

struct Shared {
    /// Counts jobs; a change tells members that `job` is new.
    epoch: AtomicUsize,
    /// The current job; valid while `running` is above zero.
    job: AtomicPtr<Job>,
    /// Members other than the caller that have not finished the current job.
    running: AtomicUsize,
    /// A member's job panicked.
    panicked: AtomicBool,
    /// The team is being dropped.
    closing: AtomicBool,
    /// What each member has left of its share of [`Team::for_pieces`].
    shares: Vec<Share>,
    /// Members asleep; guarded by `lock`.
    asleep: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

/// The items that a member has not begun: from the low 32 bits to the high 32 bits. On a cache line
/// of its own, as members look at each other's rarely.
#[repr(align(128))]
struct Share(AtomicU64);

impl Share {
    fn put(&self, items: std::ops::Range<u32>) {
        self.0.store(u64::from(items.end) << 32 | u64::from(items.start), Ordering::Relaxed);
    }

    /// Takes half of what is left, and at least `grain`: the owner from the front, others from the
    /// back, so that the owner's items stay consecutive.
    fn take(&self, grain: u32, owner: bool) -> Option<std::ops::Range<usize>> {
        let mut now = self.0.load(Ordering::Relaxed);
        loop {
            let (start, end) = (now as u32, (now >> 32) as u32);
            if start >= end {
                return None;
            }
            let n = grain.max((end - start) / 2).min(end - start);
            let (taken, left) = if owner {
                (start..start + n, start + n..end)
            } else {
                (end - n..end, start..end - n)
            };
            let new = u64::from(left.end) << 32 | u64::from(left.start);
            match self.0.compare_exchange_weak(now, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(taken.start as usize..taken.end as usize),
                Err(other) => now = other,
            }
        }
    }
}

/// Threads that work together on one job at a time.
pub struct Team {
    shared: Arc<Shared>,
    members: Vec<JoinHandle<()>>,
    /// One job at a time, whoever asks.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team({} threads)", self.threads())
    }
}

impl Team {
    /// A team of `threads` members, the caller among them; at least one.
    ///
    /// If the system refuses a thread, the team is smaller: [`Team::threads`] tells.
    pub fn new(threads: usize, pinning: Pinning) -> Self {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            running: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            shares: (0..threads.max(1)).map(|_| Share(AtomicU64::new(0))).collect(),
            asleep: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        if pinning == Pinning::Pinned {
            pin_current_thread(0);
        }
        let members = (1..threads.max(1))
            .map_while(|member| {
                let shared = Arc::clone(&shared);
                let builder = std::thread::Builder::new().name(format!("offshoot-{member}"));
                let run = move || {
                    if pinning == Pinning::Pinned {
                        pin_current_thread(member);
                    }
                    work(&shared, member);
                };
                builder.spawn(run).ok()
            })
            .collect();
        Self { shared, members, turn: Mutex::new(()) }
    }

    /// Members, the caller included.
    pub fn threads(&self) -> usize {
        self.members.len() + 1
    }

    /// Runs `job(member)` once on every member and returns when all are done.
    ///
    /// # Panics
    /// If `job` panics on any member. Must not be called from inside a job.
    pub fn run<F: Fn(usize) + Sync>(&self, job: F) {
        if self.members.is_empty() {
            return job(0);
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.run_now(&turn, job);
    }

    /// As [`Team::run`], for whoever has the turn.
    fn run_now<F: Fn(usize) + Sync>(&self, _turn: &MutexGuard<'_, ()>, job: F) {
        unsafe fn call<F: Fn(usize)>(data: *const (), member: usize) {
            // SAFETY: `data` is the `F` that `run` was given, alive until all members are done.
            unsafe { (*data.cast::<F>())(member) }
        }
        let mut erased = Job { call: call::<F>, data: (&raw const job).cast() };
        let shared = &*self.shared;
        shared.running.store(self.members.len(), Ordering::Relaxed);
        shared.job.store(&raw mut erased, Ordering::Relaxed);
        // SeqCst with the member's own check before sleeping: one of the two sees the other.
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            let _guard = shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        let mut looks = 0u32;
        while shared.running.load(Ordering::Acquire) > 0 {
            looks = looks.saturating_add(1);
            if looks < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        if let Err(panic) = own {
            shared.panicked.store(false, Ordering::Relaxed);
            resume_unwind(panic);
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a team member's job panicked");
    }

    /// Cuts `0..items` into pieces and runs `job(member, piece)` on each. Which member runs a piece
    /// must not matter to the result.
    ///
    /// Each member begins with an equal share of consecutive items, the same whenever as many are
    /// asked for, so that what it wrote in one job is close to it in the next. It takes them in
    /// pieces of half of what is left, at least `grain`; who is done takes from the others.
    ///
    /// # Panics
    /// As [`Team::run`]; or if there are 2^32 items or more. Must not be called from inside a job.
    pub fn for_pieces<F>(&self, items: usize, grain: usize, job: F)
    where
        F: Fn(usize, std::ops::Range<usize>) + Sync,
    {
        if items <= grain.max(1) || self.members.is_empty() {
            if items > 0 {
                job(0, 0..items);
            }
            return;
        }
        let total = u32::try_from(items).expect("fewer than 2^32 items");
        let grain = u32::try_from(grain.max(1)).unwrap_or(u32::MAX);
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let threads = self.threads();
        let shares = &self.shared.shares[..threads];
        let border = |member: usize| (u64::from(total) * member as u64 / threads as u64) as u32;
        for (member, share) in shares.iter().enumerate() {
            share.put(border(member)..border(member + 1));
        }
        self.run_now(&turn, |member| {
            for other in 0..threads {
                let share = &shares[(member + other) % threads];
                while let Some(piece) = share.take(grain, other == 0) {
                    job(member, piece);
                }
            }
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        {
            let _guard = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.wake.notify_all();
        }
        for member in self.members.drain(..) {
            // A member catches its jobs' panics, so joining cannot fail.
            let _ = member.join();
        }
    }
}

/// What a member does all its life.
fn work(shared: &Shared, member: usize) {
    let mut seen = 0;
    loop {
        seen = wait_for_change(shared, seen);
        if shared.closing.load(Ordering::Acquire) {
            return;
        }
        let job = shared.job.load(Ordering::Acquire);
        // SAFETY: `run` keeps the job and its closure alive until `running` is back at zero.
        let result =
            catch_unwind(AssertUnwindSafe(|| unsafe { ((*job).call)((*job).data, member) }));
        if result.is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.running.fetch_sub(1, Ordering::Release);
    }
}

/// Returns the job counter once it differs from `seen`.
fn wait_for_change(shared: &Shared, seen: usize) -> usize {
    for look in 0..SPINS + YIELDS {
        let now = shared.epoch.load(Ordering::Acquire);
        if now != seen {
            return now;
        }
        if look < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
    let mut guard = shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
    shared.asleep.fetch_add(1, Ordering::SeqCst);
    let now = loop {
        let now = shared.epoch.load(Ordering::SeqCst);
        if now != seen {
            break now;
        }
        guard = shared.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
    };
    shared.asleep.fetch_sub(1, Ordering::SeqCst);
    now
}

/// Ties the calling thread to the `index`-th processor that the process may use, counting round.
/// Returns whether the system agreed; where it has no such call, `false`.
pub fn pin_current_thread(index: usize) -> bool {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: the set is a plain bit mask, read and written by the calls with its true size.
        unsafe {
            let mut allowed: libc::cpu_set_t = std::mem::zeroed();
            if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut allowed) != 0 {
                return false;
            }
            let cpus: Vec<usize> = (0..libc::CPU_SETSIZE as usize)
                .filter(|&cpu| libc::CPU_ISSET(cpu, &allowed))
                .collect();
            if cpus.is_empty() {
                return false;
            }
            let mut one: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpus[index % cpus.len()], &mut one);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one) == 0
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = index;
        false
    }
}

/// Processors that this process may use; at least one.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_runs_every_job_once() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads, Pinning::Free);
            let runs: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
            for _ in 0..2000 {
                team.run(|member| {
                    runs[member].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(runs.iter().all(|r| r.load(Ordering::Relaxed) == 2000));
        }
    }

    #[test]
    fn a_team_that_slept_wakes_again() {
        let team = Team::new(3, Pinning::Free);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(60));
            let sum = AtomicU64::new(0);
            team.run(|member| {
                sum.fetch_add(member as u64 + 1, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 6);
        }
    }

    #[test]
    fn pieces_cover_every_item_once() {
        let team = Team::new(3, Pinning::Free);
        for (items, grain) in [(0, 4), (1, 4), (4, 4), (1001, 7), (10, 0)] {
            let seen: Vec<AtomicU64> = (0..items).map(|_| AtomicU64::new(0)).collect();
            team.for_pieces(items, grain, |_, piece| {
                for i in piece {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_in_a_job_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(2, Pinning::Free);
        for member in 0..2 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.run(|m| assert!(m != member, "expected"));
            }));
            assert!(result.is_err());
        }
        team.run(|_| {});
    }

    #[test]
    fn pinning_answers() {
        let done = std::thread::spawn(|| pin_current_thread(1)).join().unwrap();
        assert_eq!(done, cfg!(target_os = "linux"));
    }
}
