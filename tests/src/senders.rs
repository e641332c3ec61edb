//! Legitimate senders: they arrive at random, deliver one message each, and write down what became of it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::clock;
use crate::load::{self, Arrivals, Load};
use crate::netns::Namespace;

/// A message of one line, header to final dot.
const MESSAGE: &str = "Subject: lab\r\n\r\nA message.\r\n.\r\n";

/// How senders behave.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// Sessions a second, Poisson.
    pub per_second: f64,
    /// Ends after so many sessions; `None` goes on until stopped.
    pub sessions: Option<usize>,
    /// Pause before each command.
    pub pause: Duration,
    /// A sender without a greeting by then, from the start of its connect, gives up. Also bounds each later reply.
    pub patience: Duration,
    /// What is sent after DATA; `None` is a message of one line.
    pub upload: Option<Upload>,
    pub seed: u64,
}

/// A message that takes its time on a slow line.
#[derive(Debug, Clone, Copy)]
pub struct Upload {
    pub bytes: u32,
    pub bytes_per_second: u32,
}

impl Upload {
    const STEP: Duration = Duration::from_millis(100);

    /// Sends it up to its final dot. The server may stall for as long as the sender's patience, in all.
    async fn send(self, stream: &mut BufReader<TcpStream>, patience: Duration) -> io::Result<()> {
        const LINE: &str = "A line of a message, long enough to be worth its line end.\r\n";
        let step = LINE.repeat(self.bytes_per_second as usize / 10 / LINE.len() + 1);
        let steps = self.bytes as usize / step.len() + 1;
        let all = async {
            // By an interval, not by pauses: what a step takes to write must not add up.
            let mut pace = tokio::time::interval(Self::STEP);
            stream.get_mut().write_all(b"Subject: lab\r\n\r\n").await?;
            for _ in 0..steps {
                pace.tick().await;
                stream.get_mut().write_all(step.as_bytes()).await?;
            }
            Ok(())
        };
        let longest = Self::STEP * u32::try_from(steps).unwrap_or(u32::MAX) + patience;
        timeout(longest, all)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Traffic {
    /// The senders of the measured runs: 50 ms between commands, gone after 30 s without a greeting.
    pub fn new(per_second: f64) -> Self {
        Self {
            per_second,
            sessions: None,
            pause: Duration::from_millis(50),
            patience: Duration::from_secs(30),
            upload: None,
            seed: 0x5e47_1e55,
        }
    }
}

/// Where in the dialogue a session was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    Connect,
    Greeting,
    Ehlo,
    Mail,
    Rcpt,
    Data,
    Body,
}

/// What became of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The server took responsibility for the message.
    Delivered,
    /// The sender's patience was over before the greeting.
    NoGreeting,
    /// A reply that is not the wanted one, with its code.
    Refused(Stage, u16),
    /// The connection ended, or said nothing for as long as the sender's patience.
    Dropped(Stage),
}

/// One finished session.
#[derive(Debug, Clone, Copy)]
pub struct Session {
    pub started: Instant,
    /// From start to connected.
    pub connect: Option<Duration>,
    /// From connected to the first line of the greeting, by the client's clock.
    pub greeting: Option<Duration>,
    pub outcome: Outcome,
    pub ended: Instant,
}

impl Session {
    /// From the start of connect(2) to the greeting, which is what a sender's patience is about; `None` when there was no
    /// connection, no reply, or a refusal in place of a greeting.
    pub fn wait(&self) -> Option<Duration> {
        if matches!(self.outcome, Outcome::Refused(Stage::Greeting, _)) {
            return None;
        }
        Some(self.connect? + self.greeting?)
    }
}

/// Counts over some sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub tried: usize,
    pub delivered: usize,
    pub no_greeting: usize,
    pub refused: usize,
    pub dropped: usize,
}

impl Tally {
    pub fn of<'a>(sessions: impl IntoIterator<Item = &'a Session>) -> Self {
        let mut tally = Self::default();
        for session in sessions {
            tally.tried += 1;
            *match session.outcome {
                Outcome::Delivered => &mut tally.delivered,
                Outcome::NoGreeting => &mut tally.no_greeting,
                Outcome::Refused(..) => &mut tally.refused,
                Outcome::Dropped(_) => &mut tally.dropped,
            } += 1;
        }
        tally
    }

    /// Delivered of tried; 1 when nothing was tried.
    pub fn share(&self) -> f64 {
        if self.tried == 0 {
            1.0
        } else {
            self.delivered as f64 / self.tried as f64
        }
    }
}

/// The latency that a share `q` (0 to 1) of the sessions did not exceed; `None` when that one never saw a greeting, which
/// counts as longer than any.
pub fn greeting_quantile<'a>(sessions: impl IntoIterator<Item = &'a Session>, q: f64) -> Option<Duration> {
    quantile(sessions.into_iter().map(|session| session.greeting), q)
}

/// The latency that a share `q` (0 to 1) did not exceed, by rank, without interpolation; `None` stands for one that never
/// ended, and is longer than any.
pub fn quantile(latencies: impl IntoIterator<Item = Option<Duration>>, q: f64) -> Option<Duration> {
    let mut latencies: Vec<_> = latencies
        .into_iter()
        .map(|latency| latency.unwrap_or(Duration::MAX))
        .collect();
    latencies.sort_unstable();
    let rank = (q * latencies.len() as f64).ceil() as usize;
    latencies
        .get(rank.saturating_sub(1))
        .copied()
        .filter(|latency| *latency != Duration::MAX)
}

/// Running senders.
#[derive(Debug)]
pub struct Senders {
    load: Load,
    sessions: Arc<Mutex<Vec<Session>>>,
}

impl Senders {
    pub(crate) fn start(namespace: &Namespace, traffic: Traffic) -> Result<Self> {
        let sessions = Arc::new(Mutex::new(Vec::new()));
        let book = Arc::clone(&sessions);
        let load = Load::start(namespace, "senders", move |mut stop| async move {
            let mut random = Rng::with_seed(traffic.seed);
            let mut under_way = JoinSet::new();
            let mut arrivals = Arrivals::begin();
            for _ in 0..traffic.sessions.unwrap_or(usize::MAX) {
                tokio::select! {
                    () = stop.wait() => break,
                    () = arrivals.after(load::poisson_gap(&mut random, traffic.per_second)) => {}
                }
                let source = load::address(&mut random, None);
                let (traffic, book) = (traffic.clone(), Arc::clone(&book));
                under_way.spawn(async move {
                    let session = Dialogue::run(source, &traffic).await;
                    book.lock().unwrap_or_else(PoisonError::into_inner).push(session);
                });
            }
            // A sender that has begun is not cut off, or the tail of the latencies would be.
            while under_way.join_next().await.is_some() {}
        })?;
        Ok(Self { load, sessions })
    }

    /// The sessions finished so far.
    pub fn so_far(&self) -> Vec<Session> {
        self.sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Starts no more sessions, waits for those under way (each bounded by its patience), and returns all.
    ///
    /// # Errors
    /// The senders could not run at all.
    pub fn stop(self) -> Result<Vec<Session>> {
        self.load.stop()?;
        Ok(std::mem::take(
            &mut *self.sessions.lock().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

/// A session under way.
struct Dialogue {
    started: Instant,
    connect: Option<Duration>,
    greeting: Option<Duration>,
}

impl Dialogue {
    async fn run(source: std::net::Ipv4Addr, traffic: &Traffic) -> Session {
        let mut dialogue = Self {
            started: clock::now(),
            connect: None,
            greeting: None,
        };
        let outcome = dialogue.deliver(source, traffic).await;
        let Self {
            started,
            connect,
            greeting,
        } = dialogue;
        Session {
            started,
            connect,
            greeting,
            outcome,
            ended: clock::now(),
        }
    }

    async fn deliver(&mut self, source: std::net::Ipv4Addr, traffic: &Traffic) -> Outcome {
        let mut stream = match timeout(traffic.patience, self.greet(source)).await {
            Err(_) => return Outcome::NoGreeting,
            Ok(Err(_)) if self.connect.is_none() => return Outcome::Dropped(Stage::Connect),
            Ok(Err(_)) => return Outcome::Dropped(Stage::Greeting),
            Ok(Ok((_, code))) if code != 220 => return Outcome::Refused(Stage::Greeting, code),
            Ok(Ok((stream, _))) => stream,
        };
        let steps = [
            (Stage::Ehlo, "EHLO client.lab.invalid\r\n", 250),
            (Stage::Mail, "MAIL FROM:<sender@client.lab.invalid>\r\n", 250),
            (Stage::Rcpt, "RCPT TO:<user@lab.invalid>\r\n", 250),
            (Stage::Data, "DATA\r\n", 354),
            // A message of one line goes out at once, or Nagle's algorithm would hold its second half back.
            (
                Stage::Body,
                if traffic.upload.is_some() {
                    ".\r\n"
                } else {
                    MESSAGE
                },
                250,
            ),
        ];
        for (stage, text, wanted) in steps {
            sleep(traffic.pause).await;
            if let (Stage::Body, Some(upload)) = (stage, traffic.upload)
                && upload.send(&mut stream, traffic.patience).await.is_err()
            {
                return Outcome::Dropped(stage);
            }
            match timeout(traffic.patience, exchange(&mut stream, text)).await {
                Ok(Ok(code)) if code == wanted => {}
                Ok(Ok(code)) => return Outcome::Refused(stage, code),
                Ok(Err(_)) | Err(_) => return Outcome::Dropped(stage),
            }
        }
        // The message is delivered; what becomes of QUIT changes nothing.
        let _ = timeout(traffic.patience, exchange(&mut stream, "QUIT\r\n")).await;
        Outcome::Delivered
    }

    async fn greet(&mut self, source: std::net::Ipv4Addr) -> io::Result<(BufReader<TcpStream>, u16)> {
        let mut stream = BufReader::new(load::connect(source).await?);
        let connected = clock::now();
        self.connect = Some(connected.duration_since(self.started));
        let code = reply(&mut stream).await?;
        self.greeting = Some(connected.elapsed());
        Ok((stream, code))
    }
}

async fn exchange(stream: &mut BufReader<TcpStream>, text: &str) -> io::Result<u16> {
    stream.get_mut().write_all(text.as_bytes()).await?;
    reply(stream).await
}

/// Reads a reply of one or more lines and returns its code.
pub(crate) async fn reply(stream: &mut BufReader<TcpStream>) -> io::Result<u16> {
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let code = line.get(..3).and_then(|code| code.parse().ok());
        let code = code.ok_or(io::ErrorKind::InvalidData)?;
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(code);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(greeting_ms: Option<u64>, outcome: Outcome) -> Session {
        let now = clock::now();
        Session {
            started: now,
            connect: Some(Duration::ZERO),
            greeting: greeting_ms.map(Duration::from_millis),
            outcome,
            ended: now,
        }
    }

    #[test]
    fn a_session_without_greeting_is_slower_than_any() {
        let sessions = [
            session(None, Outcome::NoGreeting),
            session(Some(3), Outcome::Delivered),
            session(Some(1), Outcome::Delivered),
            session(Some(2), Outcome::Refused(Stage::Mail, 421)),
        ];
        assert_eq!(greeting_quantile(&sessions, 0.5), Some(Duration::from_millis(2)));
        assert_eq!(greeting_quantile(&sessions, 0.75), Some(Duration::from_millis(3)));
        assert_eq!(greeting_quantile(&sessions, 0.99), None);
        assert_eq!(greeting_quantile(&sessions, 0.0), Some(Duration::from_millis(1)));
        assert_eq!(greeting_quantile(&[], 0.5), None);
    }

    #[test]
    fn every_session_is_counted_once() {
        let sessions = [
            session(None, Outcome::NoGreeting),
            session(Some(1), Outcome::Delivered),
            session(Some(2), Outcome::Refused(Stage::Mail, 421)),
            session(Some(2), Outcome::Dropped(Stage::Body)),
        ];
        let tally = Tally::of(&sessions);
        assert_eq!(
            tally,
            Tally {
                tried: 4,
                delivered: 1,
                no_greeting: 1,
                refused: 1,
                dropped: 1
            }
        );
        assert!((tally.share() - 0.25).abs() < f64::EPSILON);
    }
}
