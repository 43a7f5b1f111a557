//! `nodens run`: the agent in the foreground.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use super::BAD_CONFIG;
use crate::app::{self, Agent, End, TICK};
use crate::config::file::{self, Loaded};
use crate::config::{Config, Log, LogFormat, LogLevel};
use crate::parent::{self, Parent};
use crate::{privileges, sys};

pub(super) fn run(path: Option<PathBuf>) -> ExitCode {
    let loaded = match &path {
        Some(path) => file::load(path),
        None => Ok(Loaded { config: Config::default(), hash: file::digest("") }),
    };
    let Loaded { config, hash } = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(BAD_CONFIG);
        }
    };
    start_log(&config.log);
    // While this is the only thread.
    let result = privileges::restrict(&config).map_err(anyhow::Error::from);
    match result.and_then(|()| serve(config, path, &hash)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            eprintln!("nodens: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config, path: Option<PathBuf>, hash: &str) -> anyhow::Result<()> {
    if let Some(path) = &path {
        warn_of_a_blind_reload(path);
    }
    if let Err(error) = sys::raise_open_files() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    // Whoever was started as /proc/self/exe would be called `exe`.
    rustix::thread::set_name(c"nodens")?;
    let parent = Arc::new(Parent::find());
    if parent.is_keep() {
        // Without it nobody would replace an agent that hangs, and an agent that nobody replaces must not intercept.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    }
    anyhow::ensure!(!parent.is_lost(), "`nodens keep` has ended meanwhile");
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let signals = Signals::hear()?;
        let prometheus = app::install_metrics()?;
        let agent = Agent::start(config, (path, hash), parent, prometheus).await?;
        until_stopped(agent, signals).await
    });
    // Dropping it would wait, without a bound, for a worker that hangs: see Agent::stop.
    runtime.shutdown_background();
    result
}

/// The file was read before capabilities were given up, by which root reads what belongs to others.
fn warn_of_a_blind_reload(path: &Path) {
    // Whatever it is, this must not wait: a pipe would, whose writer has gone.
    if let Err(error) = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        tracing::warn!(
            path = %path.display(), %error,
            "the configuration cannot be read again for a reload: let this user read it (CAP_DAC_OVERRIDE is given up)"
        );
    }
}

/// One thread for all that is not UDP: connections need no locks against each other that way, and a
/// miss costs one wake-up.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // Flights that the workers have started come before the connections' tasks, so that the
    // queries of a batch are together when a connection writes.
    runtime.global_queue_interval(1);
    Ok(runtime.enable_all().build()?)
}

/// The signals that an agent hears.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user: Signal,
}

impl Signals {
    /// From now on they wait to be heard. Before the agent starts: one that is told to end while it does ends in order.
    pub(super) fn hear() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined1())?,
        })
    }
}

/// Runs a started agent until SIGTERM or SIGINT, and drains it. A loop ends it with an error.
pub(super) async fn until_stopped(mut agent: Agent, mut signals: Signals) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(TICK);
    // Here and not in a task: however many queries wait for their turn, this comes between them.
    let is_watched = agent.shows_life_each().is_some();
    let mut life = tokio::time::interval(agent.shows_life_each().unwrap_or(TICK));
    let mut loops = agent.watch_for_loops();
    let parent = agent.parent();
    let (mut result, mut end) = (Ok(()), End::Last);
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            _ = signals.hangup.recv() => agent.reload(),
            _ = signals.user.recv() => agent.log_stats(),
            _ = tick.tick() => agent.tick(),
            _ = life.tick(), if is_watched => agent.show_life().await,
            words = parent.hear() => match words.as_str() {
                parent::WRITE => agent.write_cache(),
                parent::REPLACED => {
                    end = End::Replaced;
                    break;
                }
                _ => {}
            },
            Ok(found) = loops.wait_for(Option::is_some) => {
                result = found.clone().map_or(Ok(()), |found| Err(found.into()));
                break;
            }
        }
    }
    agent.stop(end).await;
    result
}

/// Starts logging to standard error. The libraries' own lines come from `warn` on.
pub(super) fn start_log(log: &Log) {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let targets = Targets::new().with_target("nodens", level).with_default(level.min(LevelFilter::WARN));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(targets);
    // Fails only if logging was started before, and then it is there already.
    let _ = match log.format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
        LogFormat::Text => registry.with(lines.with_target(false)).try_init(),
    };
}
