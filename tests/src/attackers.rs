//! Attackers: clients that take a slot and sit on it, each in its manner. They write down whether they were greeted and when
//! they were dropped.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::clock;
use crate::load::{self, Arrivals, Load, Stop};
use crate::netns::Namespace;
use crate::senders;

/// How attackers arrive.
#[derive(Debug, Clone, Copy)]
pub enum Arrival {
    /// So many a second, Poisson, until stopped.
    PerSecond(f64),
    /// `count` evenly over `within`, and no more.
    Evenly { count: usize, within: Duration },
}

/// What an attacker does with its connection. None speaks before the greeting: that would be a pipelining offence, which
/// Postfix has other means against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Never says a word.
    Silent,
    /// Says this command, line end and all, whenever it has been quiet for so long.
    Repeat { command: &'static str, every: Duration },
    /// Goes as far as DATA, then sends a byte every so often.
    Drip { every: Duration },
    /// Is gone as soon as it is connected, as a port scan.
    Leave,
    /// Says nothing, and leaves so long after it connected, as a health check does.
    Visit { stay: Duration },
}

/// How attackers behave.
#[derive(Debug, Clone)]
pub struct Attack {
    pub arrival: Arrival,
    /// Comes back so long after it was dropped; `None` stays away.
    pub reconnect: Option<Duration>,
    pub manner: Manner,
    /// All come from the one network 10.77.N.0/24; `None` is from anywhere.
    pub network: Option<u8>,
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

    /// `count` silent ones, so far apart that each is on its slot before all have come: what trips is a part of the slots
    /// and not the last of them.
    pub fn flood(count: usize) -> Self {
        Self::silent(Arrival::Evenly {
            count,
            within: Duration::from_secs(3),
        })
    }

    /// Silent attackers that stay away once dropped.
    pub fn silent(arrival: Arrival) -> Self {
        Self {
            arrival,
            reconnect: None,
            manner: Manner::Silent,
            network: None,
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
        let mut arrivals = Arrivals::begin();
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
                () = arrivals.after(gap) => {}
            }
            let source = load::address(&mut random, self.network);
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
                self.hold(stream, book).await;
            }
            match self.reconnect {
                Some(pause) => sleep(pause).await,
                None => return,
            }
        }
    }

    /// Keeps one connection in the attacker's manner, and the book of it.
    async fn hold(&self, stream: TcpStream, book: &Book) {
        let page = Page::open(book);
        if self.manner == Manner::Leave {
            drop(stream);
            page.note(|hold| hold.ended = Some(clock::now()));
            return;
        }
        // Whatever ended it, an end of file or an error, it was the server.
        let stay = self.stay(BufReader::new(stream), &page);
        let left = match self.manner {
            Manner::Visit { stay: visit } => timeout(visit, stay).await.is_err(),
            _ => {
                let _ = stay.await;
                false
            }
        };
        page.note(|hold| {
            hold.ended = Some(clock::now());
            hold.dropped = !left;
        });
    }

    /// Returns when the server ends the connection.
    async fn stay(&self, mut stream: BufReader<TcpStream>, page: &Page<'_>) -> io::Result<()> {
        senders::reply(&mut stream).await?;
        page.note(|hold| hold.greeted = Some(clock::now()));
        match self.manner {
            Manner::Silent | Manner::Leave | Manner::Visit { .. } => babble(&mut stream, None).await,
            Manner::Repeat { command, every } => babble(&mut stream, Some((command, every))).await,
            Manner::Drip { every } => {
                for command in [
                    "EHLO drip.lab.invalid\r\n",
                    "MAIL FROM:<drip@drip.lab.invalid>\r\n",
                    "RCPT TO:<user@lab.invalid>\r\n",
                    "DATA\r\n",
                ] {
                    stream.get_mut().write_all(command.as_bytes()).await?;
                    senders::reply(&mut stream).await?;
                }
                babble(&mut stream, Some(("x", every))).await
            }
        }
    }
}

/// Says the text whenever nothing happened for so long, and reads what comes, until the server ends the connection.
async fn babble(stream: &mut BufReader<TcpStream>, text: Option<(&str, Duration)>) -> io::Result<()> {
    let mut input = [0; 512];
    loop {
        let Some((text, every)) = text else {
            if stream.read(&mut input).await? == 0 {
                return Ok(());
            }
            continue;
        };
        match timeout(every, stream.read(&mut input)).await {
            Ok(read) => {
                if read? == 0 {
                    return Ok(());
                }
            }
            Err(_) => stream.get_mut().write_all(text.as_bytes()).await?,
        }
    }
}

/// A connection's place in the book.
struct Page<'a> {
    book: &'a Book,
    number: usize,
}

impl<'a> Page<'a> {
    fn open(book: &'a Book) -> Self {
        let mut holds = book.lock().unwrap_or_else(PoisonError::into_inner);
        holds.push(Hold {
            connected: clock::now(),
            greeted: None,
            ended: None,
            dropped: false,
        });
        let number = holds.len() - 1;
        Self { book, number }
    }

    fn note(&self, change: impl FnOnce(&mut Hold)) {
        let mut holds = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hold) = holds.get_mut(self.number) {
            change(hold);
        }
    }
}
