//! The program of `sentinel_lab::stand_in`, under the names `master` and `smtpd`.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};
use std::{env, io, thread};

use anyhow::{Context, Result};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid, pause, setsid};
use sentinel_lab::stand_in::{Accepts, Role, VARIABLE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// The environment variable with the pid of an smtpd's master.
const MASTER: &str = "STAND_IN_MASTER";

const GREETING: &[u8] = b"220 stand-in ESMTP\r\n";

fn main() -> Result<()> {
    let name = env::args_os().next().unwrap_or_default();
    if Path::new(&name).ends_with("smtpd") {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // One that had ended before that will not be told of.
        let master = env::var(MASTER)?.parse()?;
        while getppid() == Pid::from_raw(master) {
            pause();
        }
        return Ok(());
    }
    master()
}

fn master() -> Result<()> {
    // As master does (Postfix src/master/master.c); it is one of the things that it is known by.
    setsid()?;
    let role: Role = serde_json::from_str(&env::var(VARIABLE)?)?;
    let _smtpds = (0..role.smtpds).map(|_| smtpd()).collect::<Result<Vec<_>>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listeners = runtime.block_on(async {
        role.listens
            .iter()
            .map(|at| listen(*at))
            .collect::<Result<Vec<_>>>()
    })?;
    let connections = runtime.block_on(connect(&role))?;
    let accepts = role.accepts;
    thread::spawn(move || {
        runtime.block_on(async move {
            let tasks: Vec<_> = listeners
                .into_iter()
                .map(|one| tokio::spawn(accept(one, accepts)))
                .collect();
            for task in tasks {
                let _ = task.await;
            }
        });
    });
    io::stdout().write_all(b"ready\n")?;
    // Nothing ever comes: this is the wait for the end of whoever started us.
    io::stdin().read_to_end(&mut Vec::new())?;
    drop(connections);
    Ok(())
}

fn smtpd() -> Result<Child> {
    let program = env::current_exe()?.with_file_name("smtpd");
    let arguments = ["-n", "smtp", "-t", "inet", "-u", "-c", "-o", "stress="];
    Command::new(program)
        .args(arguments)
        .env(MASTER, std::process::id().to_string())
        .spawn()
        .context("starting an smtpd")
}

/// More than fifty connections wait in a queue when nobody accepts them.
const BACKLOG: u32 = 1024;

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket.listen(BACKLOG)?)
}

async fn connect(role: &Role) -> Result<Vec<TcpStream>> {
    let mut connections = Vec::new();
    for listener in role.listens.iter().cycle().take(role.connections as usize) {
        connections.push(TcpStream::connect(listener).await?);
    }
    Ok(connections)
}

async fn accept(listener: TcpListener, accepts: Accepts) -> Result<()> {
    let most = match accepts {
        Accepts::AndKeeps(most) => most,
        Accepts::AndServes => u32::MAX,
    };
    let mut kept = Vec::new();
    for _ in 0..most {
        let (mut stream, _) = listener.accept().await?;
        if accepts == Accepts::AndServes {
            tokio::spawn(serve(stream));
        } else {
            stream.write_all(GREETING).await?;
            kept.push(stream);
        }
    }
    std::future::pending().await
}

/// A client that has left without waiting is no error.
async fn serve(mut stream: TcpStream) {
    if stream.write_all(GREETING).await.is_ok() {
        let _ = stream.read(&mut [0; 512]).await;
    }
}
