//! Attackers: clients that take a slot and sit on it. They write down whether they were greeted and when they were dropped.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::clock;
use crate::load::{self, Load, Stop};
use crate::netns::Namespace;

/// How attackers arrive.
#[derive(Debug, Clone, Copy)]
pub enum Arrival {
    /// So many a second, Poisson, until stopped.
    PerSecond(f64),
    /// `count` evenly over `within`, and no more.
    Evenly { count: usize, within: Duration },
}

/// How attackers behave.
#[derive(Debug, Clone)]
pub struct Attack {
    pub arrival: Arrival,
    /// Comes back so long after it was dropped; `None` stays away.
    pub reconnect: Option<Duration>,
    /// Sends NOOP every so often, so as not to be silent; `None` is silent.
    pub noop_every: Option<Duration>,
    /// Leaves by itself so long after it connected, as port scanners and health checks do; `None` stays.
    pub leave_after: Option<Duration>,
    pub seed: u64,
}

impl Attack {
    /// `count` silent ones within a second.
    pub fn burst(count: usize) -> Self {
        Self::silent(Arrival::Evenly {
            count,
            within: Duration::from_secs(1),
        })
    }

    /// Silent attackers that stay away once dropped.
    pub fn silent(arrival: Arrival) -> Self {
        Self {
            arrival,
            reconnect: None,
            noop_every: None,
            leave_after: None,
            seed: 0xa77a_c4e5,
        }
    }
}

/// One connection of an attacker.
#[derive(Debug, Clone, Copy)]
pub struct Hold {
    pub connected: Instant,
    /// When the first byte of the server came; `None` while in the accept queue.
    pub greeted: Option<Instant>,
    /// When the connection ended; `None` while it stands.
    pub ended: Option<Instant>,
    /// The server ended it, not the attacker.
    pub dropped: bool,
}

/// Counts over an attack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Toll {
    pub connections: usize,
    pub greeted: usize,
    pub dropped: usize,
    /// Connected now, in the accept queue or on a slot.
    pub standing: usize,
    /// Connected now and greeted: each holds a slot.
    pub holding: usize,
}

impl Toll {
    pub fn of(holds: &[Hold]) -> Self {
        let count = |wanted: fn(&Hold) -> bool| holds.iter().filter(|hold| wanted(hold)).count();
        Self {
            connections: holds.len(),
            greeted: count(|hold| hold.greeted.is_some()),
            dropped: count(|hold| hold.dropped),
            standing: count(|hold| hold.ended.is_none()),
            holding: count(|hold| hold.ended.is_none() && hold.greeted.is_some()),
        }
    }
}

type Book = Arc<Mutex<Vec<Hold>>>;

/// Running attackers.
#[derive(Debug)]
pub struct Attackers {
    load: Load,
    book: Book,
}

impl Attackers {
    pub(crate) fn start(namespace: &Namespace, attack: Attack) -> Result<Self> {
        let book = Book::default();
        let entries = Arc::clone(&book);
        let load = Load::start(namespace, "attackers", move |stop| attack.run(stop, entries))?;
        Ok(Self { load, book })
    }

    pub fn toll(&self) -> Toll {
        Toll::of(&self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All attackers leave with FIN; returns every connection.
    ///
    /// # Errors
    /// The attackers could not run at all.
    pub fn stop(self) -> Result<Vec<Hold>> {
        self.load.stop()?;
        Ok(std::mem::take(
            &mut *self.book.lock().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

impl Attack {
    async fn run(self, mut stop: Stop, book: Book) {
        let mut random = Rng::with_seed(self.seed);
        let mut attackers = JoinSet::new();
        let most = match self.arrival {
            Arrival::PerSecond(_) => usize::MAX,
            Arrival::Evenly { count, .. } => count,
        };
        for _ in 0..most {
            let gap = match self.arrival {
                Arrival::PerSecond(rate) => load::poisson_gap(&mut random, rate),
                Arrival::Evenly { count, within } => within / u32::try_from(count).unwrap_or(u32::MAX),
            };
            tokio::select! {
                () = stop.wait() => break,
                () = sleep(gap) => {}
            }
            let source = load::address(&mut random);
            let (attack, book, mut stop) = (self.clone(), Arc::clone(&book), stop.clone());
            attackers.spawn(async move {
                tokio::select! {
                    () = stop.wait() => {}
                    () = attack.sit(source, &book) => {}
                }
            });
        }
        while attackers.join_next().await.is_some() {}
        // Those that stood when the stop came left by themselves.
        let now = clock::now();
        for hold in book.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            hold.ended.get_or_insert(now);
        }
    }

    async fn sit(&self, source: Ipv4Addr, book: &Book) {
        loop {
            // A connect that fails (the backlog is full, or the server is gone) is tried again like a lost connection.
            if let Ok(stream) = load::connect(source).await {
                let entry = enter(book);
                match self.leave_after {
                    None => self.hold(stream, book, entry).await,
                    // A timer is a millisecond at least, in which an idle smtpd has greeted.
                    Some(Duration::ZERO) => {
                        drop(stream);
                        note(book, entry, |hold| hold.ended = Some(clock::now()));
                    }
                    Some(stay) => {
                        let stayed = timeout(stay, self.hold(stream, book, entry)).await;
                        if stayed.is_err() {
                            note(book, entry, |hold| hold.ended = Some(clock::now()));
                        }
                    }
                }
            }
            match self.reconnect {
                Some(pause) => sleep(pause).await,
                None => return,
            }
        }
    }

    /// Sits until the server ends the connection.
    async fn hold(&self, mut stream: TcpStream, book: &Book, entry: usize) {
        let mut input = [0; 512];
        loop {
            let read = match self.noop_every {
                Some(pause) => timeout(pause, stream.read(&mut input)).await,
                None => Ok(stream.read(&mut input).await),
            };
            match read {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(_)) => note(book, entry, |hold| {
                    hold.greeted.get_or_insert_with(clock::now);
                }),
                // To speak before the greeting would be a pipelining offence, not a silent client's trick.
                Err(_) => {
                    let greeted = book
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get(entry)
                        .is_some_and(|hold| hold.greeted.is_some());
                    if greeted && stream.write_all(b"NOOP\r\n").await.is_err() {
                        break;
                    }
                }
            }
        }
        note(book, entry, |hold| {
            hold.ended = Some(clock::now());
            hold.dropped = true;
        });
    }
}

/// Begins an entry, and returns where it is.
fn enter(book: &Book) -> usize {
    let mut holds = book.lock().unwrap_or_else(PoisonError::into_inner);
    holds.push(Hold {
        connected: clock::now(),
        greeted: None,
        ended: None,
        dropped: false,
    });
    holds.len() - 1
}

fn note(book: &Book, entry: usize, change: impl FnOnce(&mut Hold)) {
    if let Some(hold) = book.lock().unwrap_or_else(PoisonError::into_inner).get_mut(entry) {
        change(hold);
    }
}
