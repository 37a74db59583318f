//! Shards that a command writes: `pipe:COMMAND`.
//!
//! In: a command for `sh -c`. Out: a blocking [`Read`] of what it writes to its standard output, a few chunks ahead of the reader. The
//! command and all that it starts are one process group, which is killed and reaped as soon as nobody wants more bytes: at
//! the end, when the reader is dropped, when its [`Reading`] is stopped, when this process ends. A command that ends with another status
//! than 0, or is silent for too long, gives a [`Reason::CommandFailed`] with the last line of its standard error.

use super::super::reading::{Activity, Reading};
use super::super::reason::{Reason, Trouble};
use super::Fetcher;
use super::stretch::Piece;
use crate::secrets::{PIPE, hidden_words, shown};
use bytes::{Bytes, BytesMut};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

/// Runs the command that is its `$0`. Its standard input is a lifeline whose other end is held here: should this process die
/// in whatever way, what reads it kills the group.
const SCRIPT: &str = r#"exec 3<&0 </dev/null
{ cat <&3; kill -KILL 0; } >/dev/null 2>&1 &
exec 3<&-
exec sh -c "$0""#;
const CHUNK: usize = 64 * 1024;
/// Chunks between the command and the thread that reads.
const CHUNKS_AHEAD: usize = 16;
/// Bytes of standard error that are kept.
const LONGEST_LINE: usize = 300;
/// How often a command that has closed its output is asked whether it has ended.
const GLANCE: Duration = Duration::from_millis(5);
/// How long the last words of a command that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The blocking end of a command's output.
#[derive(Debug)]
pub(super) struct PipeReader {
    command: Arc<str>,
    fetcher: Arc<Fetcher>,
    reading: Arc<Reading>,
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    position: u64,
    is_over: bool,
}

impl PipeReader {
    /// Starts a command.
    ///
    /// # Errors
    /// There is no `sh`, or the system has no more processes.
    pub(super) fn start(command: &Arc<str>, fetcher: &Arc<Fetcher>, reading: &Arc<Reading>) -> Result<Self, Trouble> {
        let pieces = run(command, fetcher, reading)
            .map_err(|error| Trouble::new(Reason::CommandFailed, format!("cannot be started: {error}")))?;
        Ok(Self {
            command: Arc::clone(command),
            fetcher: Arc::clone(fetcher),
            reading: Arc::clone(reading),
            pieces,
            current: Bytes::new(),
            position: 0,
            is_over: false,
        })
    }

    /// Goes to a byte of the output: what is before it is read, backwards by a command started anew.
    pub(super) fn go_to(&mut self, byte: u64) -> Result<(), Trouble> {
        if byte < self.position {
            *self = Self::start(&self.command, &self.fetcher, &self.reading)?;
        }
        while self.position < byte && self.have_bytes()? {
            let count = (byte - self.position).min(self.current.len() as u64) as usize;
            self.take(count);
        }
        Ok(())
    }

    /// Waits until there is a byte to read; false at the end.
    fn have_bytes(&mut self) -> Result<bool, Trouble> {
        while self.current.is_empty() && !self.is_over {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.current = bytes,
                Some(Piece::End) => self.is_over = true,
                Some(Piece::Failed(trouble)) => return Err(trouble),
                None => return Err(Trouble::new(Reason::CommandFailed, "stopped")),
            }
        }
        Ok(!self.current.is_empty())
    }

    fn take(&mut self, count: usize) -> Bytes {
        self.position += count as u64;
        self.current.split_to(count)
    }
}

impl Read for PipeReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if !self.have_bytes().map_err(io::Error::other)? {
            return Ok(0);
        }
        let count = into.len().min(self.current.len());
        into[..count].copy_from_slice(&self.take(count));
        Ok(count)
    }
}

/// Starts a command, and the task that passes on what it writes.
fn run(command: &Arc<str>, fetcher: &Fetcher, reading: &Arc<Reading>) -> io::Result<mpsc::Receiver<Piece>> {
    reading.set(Activity::Opening);
    let child = Command::new("sh")
        .arg("-c")
        .args([SCRIPT, command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let mut group = Group { pid: Pid::from_child(&child), child: Some(child) };
    let _context = fetcher.runtime.enter();
    let (output, errors) = group.ends()?;
    let (sender, pieces) = mpsc::channel(CHUNKS_AHEAD);
    let (wanted, patience) = (Arc::clone(reading), fetcher.rules.patience);
    let command = Arc::clone(command);
    fetcher.runtime.spawn(async move {
        let running = Running { group, output, errors, command, patience };
        tokio::select! {
            () = running.deliver(&sender, &wanted) => {}
            () = wanted.stopped() => {}
            () = sender.closed() => {}
        }
    });
    Ok(pieces)
}

/// A command and all that it started, until it is dropped.
#[derive(Debug)]
struct Group {
    pid: Pid,
    /// None once it is reaped.
    child: Option<Child>,
}

impl Group {
    /// The reading ends of its output and of its standard error.
    fn ends(&mut self) -> io::Result<(Receiver, Receiver)> {
        let missing = || io::Error::other("no pipe");
        let child = self.child.as_mut().ok_or_else(missing)?;
        let output = OwnedFd::from(child.stdout.take().ok_or_else(missing)?);
        let errors = OwnedFd::from(child.stderr.take().ok_or_else(missing)?);
        Ok((Receiver::from_owned_fd(output)?, Receiver::from_owned_fd(errors)?))
    }

    /// Whether the command itself has ended. It is not reaped yet: its number, which is the group's, stays its own.
    fn has_ended(&self) -> bool {
        let glance = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        !matches!(waitid(WaitId::Pid(self.pid), glance), Ok(None))
    }

    /// Ends whatever of the group is left, and reaps the command.
    fn end(&mut self) -> io::Result<ExitStatus> {
        let Some(mut child) = self.child.take() else {
            return Err(io::Error::other("reaped already"));
        };
        let _ = kill_process_group(self.pid, Signal::KILL); // nobody may be left
        child.wait()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let _ = kill_process_group(self.pid, Signal::KILL);
        // A process that the kernel holds may take a while to die. Without a thread it is reaped when this process ends.
        let _ = std::thread::Builder::new().name("shoal-reaper".to_owned()).spawn(move || child.wait());
    }
}

/// A command under way.
struct Running {
    group: Group,
    output: Receiver,
    errors: Receiver,
    command: Arc<str>,
    /// Time without a byte, while one is wanted.
    patience: Duration,
}

impl Running {
    /// Passes on what the command writes, and how it ends.
    async fn deliver(self, pieces: &mpsc::Sender<Piece>, reading: &Reading) {
        let Self { mut group, mut output, errors, command, patience } = self;
        let last_words = tokio::spawn(last_line(errors));
        let silence = format!("no byte for {} s", patience.as_secs_f64());
        let mut buffer = BytesMut::new();
        let failure = loop {
            buffer.reserve(CHUNK);
            match timeout(patience, output.read_buf(&mut buffer)).await {
                Ok(Ok(0)) => break None,
                Ok(Ok(_)) => {
                    reading.set(Activity::Reading);
                    if pieces.send(Piece::Bytes(buffer.split().freeze())).await.is_err() {
                        return;
                    }
                }
                Ok(Err(error)) => break Some(error.to_string()),
                Err(_) => break Some(silence),
            }
        };
        let failure = match failure {
            None => how_it_ended(&mut group, patience).await,
            failure => failure,
        };
        drop(group);
        let last = match failure {
            None => Piece::End,
            Some(what) => {
                let line = timeout(LAST_WORDS, last_words).await.ok().and_then(Result::ok).unwrap_or_default();
                Piece::Failed(Trouble::new(Reason::CommandFailed, format!("{what}{}", told(&line, &command))))
            }
        };
        let _ = pieces.send(last).await; // a reader that has left needs no end
    }
}

/// Waits for a command that has closed its output; none if all is well.
async fn how_it_ended(group: &mut Group, patience: Duration) -> Option<String> {
    let closed = Instant::now();
    while !group.has_ended() {
        if closed.elapsed() > patience {
            return Some(format!("closed its output, and still runs after {} s", patience.as_secs_f64()));
        }
        sleep(GLANCE).await;
    }
    match group.end() {
        Ok(status) if status.success() => None,
        Ok(status) => Some(status.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

/// The last line that is not empty, or its end.
async fn last_line(mut errors: Receiver) -> String {
    let mut kept: Vec<u8> = Vec::new();
    let mut chunk = [0; 1024];
    while let Ok(count @ 1..) = errors.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..count]);
        let too_many = kept.len().saturating_sub(4 * LONGEST_LINE);
        kept.drain(..too_many);
    }
    let text = String::from_utf8_lossy(&kept);
    let line = text.split(['\n', '\r']).map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    line.chars().take(LONGEST_LINE).collect()
}

/// A line of a command's, without the secrets that the command knows.
fn told(line: &str, command: &str) -> String {
    if line.is_empty() {
        return String::new();
    }
    let mut line = shown(&format!("{PIPE}{line}")).split_off(PIPE.len());
    for word in hidden_words(&format!("{PIPE}{command}")) {
        line = line.replace(&word, "***");
    }
    format!(": {line}")
}
