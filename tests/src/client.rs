//! One scripted client on plain blocking sockets: connects, reads, and leaves in a way of its choice.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt};
use nix::sys::time::TimeVal;

use crate::clock;

/// Bounds connect(2), through SO_SNDTIMEO, and each read.
const PATIENCE: TimeVal = TimeVal::new(10, 0);

/// A connection to port 25.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
    connected: Instant,
}

impl Client {
    /// Must be called inside the client namespace.
    pub(crate) fn connect(host: u8) -> Result<Self> {
        let socket = socket::socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        socket::setsockopt(&socket, sockopt::SendTimeout, &PATIENCE)?;
        socket::setsockopt(&socket, sockopt::ReceiveTimeout, &PATIENCE)?;
        let raw = std::os::fd::AsRawFd::as_raw_fd(&socket);
        socket::bind(raw, &SockaddrIn::new(10, 77, 0, host, 0))?;
        socket::connect(raw, &SockaddrIn::new(10, 76, 0, 1, 25))
            .context("connecting to the lab's port 25")?;
        Ok(Self {
            stream: BufReader::new(TcpStream::from(socket)),
            connected: clock::now(),
        })
    }

    /// One line of the server, and the time since the connection was made.
    ///
    /// # Errors
    /// Nothing came within 10 s, or the connection is gone.
    pub fn read_line(&mut self) -> Result<(String, Duration)> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok((line, self.connected.elapsed()))
    }

    /// # Errors
    /// The connection is gone.
    pub fn send(&mut self, line: &str) -> Result<()> {
        Ok(write!(self.stream.get_mut(), "{line}\r\n")?)
    }

    /// Sends FIN and keeps on reading.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn half_close(&self) -> Result<()> {
        Ok(self.stream.get_ref().shutdown(Shutdown::Write)?)
    }

    /// Leaves with FIN.
    pub fn close(self) {}

    /// Leaves with RST.
    ///
    /// # Errors
    /// The socket takes no SO_LINGER.
    pub fn reset(self) -> Result<()> {
        let abort = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        Ok(socket::setsockopt(
            self.stream.get_ref(),
            sockopt::Linger,
            &abort,
        )?)
    }

    /// Waits for the server to end the connection, however it does so.
    ///
    /// # Errors
    /// It did not within 10 s of silence.
    pub fn wait_dropped(&mut self) -> Result<()> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                Err(error).context("the server keeps the connection")
            }
            _ => Ok(()),
        }
    }
}
