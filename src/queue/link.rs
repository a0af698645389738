//! A connection to Redis that is made anew whenever it leads nowhere: when it is lost, when nothing
//! is heard on it, and when the server behind it cannot write any more because another took over.
//!
//! The library's own reconnecting is not used: it keeps a connection for as long as the system does,
//! and asks the same sentinel for ever.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::ClientLike,
    types::{Builder, ConnectHandle, CustomCommand, scripts::Script},
};
use socket2::TcpKeepalive;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{info, warn};

use super::{
    QueueError,
    address::Address,
    error::{Reason, is_answer, leads_nowhere},
};

/// How long a command may take, and how long it waits for a connection that was just lost.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a command waits for one that was lost longer ago: nobody must spin.
const SHORT_WAIT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long sent data may stay unanswered before the system gives a connection up.
const VANISHED_AFTER: Duration = Duration::from_secs(10);
/// How often a server is asked whether it is still there. One that does not answer within the time
/// of a command, nor answers anything else meanwhile, is given up.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Between two attempts to connect, from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// What this program is called in `CLIENT LIST`.
const NAME: &str = "vecmill";

/// How to make a connection.
#[derive(Clone)]
pub(super) struct Recipe {
    pub(super) address: Address,
    /// Writes a key of its own and removes it.
    pub(super) write: Script,
    pub(super) write_key: String,
    /// Whether blocking commands go over it: these have no time-out of the client's, and nothing
    /// can be asked meanwhile.
    pub(super) blocking: bool,
}

/// A connection that is replaced when it has to be; dropping this closes it.
pub(super) struct Link {
    state: watch::Receiver<State>,
    supervisor: JoinHandle<()>,
}

#[derive(Clone)]
enum State {
    Up(Arc<Connection>),
    Down { since: Instant, reason: Reason },
}

/// What those who use a connection know of it.
struct Connection {
    client: Client,
    /// Why nobody must use it any more.
    given_up: watch::Sender<Option<Reason>>,
    /// When a server last said anything on it.
    heard: Mutex<Instant>,
}

impl Connection {
    fn hear(&self) {
        // An instant is whole whatever panicked.
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn heard(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_up(&self, reason: Reason) {
        self.given_up.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert(reason);
            is_first
        });
    }

    async fn until_given_up(&self) -> Reason {
        let mut given_up = self.given_up.subscribe();
        // The sender is part of `self`, so that this cannot fail.
        let reason =
            given_up.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_else(|| Reason::new("connection closed"))
    }
}

/// A connection with the task that reads and writes; dropping it closes the socket.
struct Live {
    connection: Arc<Connection>,
    task: ConnectHandle,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Connects, by each sentinel in turn if there are several.
    ///
    /// # Errors
    /// Why that was not possible, with the place that it should have led to.
    pub(super) async fn connect(recipe: Recipe) -> Result<Self, QueueError> {
        let mut outcome = open(&recipe, 0).await;
        for turn in 1..recipe.address.hosts() {
            if outcome.is_err() {
                outcome = open(&recipe, turn).await;
            }
        }
        let live = outcome.map_err(|error| error.at(&recipe.address.place()))?;
        let (state, up) = watch::channel(State::Up(Arc::clone(&live.connection)));
        let supervisor = tokio::spawn(supervise(recipe, live, state));
        Ok(Self { state: up, supervisor })
    }

    /// Does a command; what it came to, also whether the connection is worth keeping, is noted.
    pub(super) async fn call<T, F>(
        &self,
        command: impl FnOnce(Client) -> F,
    ) -> Result<T, QueueError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let connection = self.connection().await?;
        let outcome = tokio::select! {
            biased;
            outcome = command(connection.client.clone()) => outcome,
            reason = connection.until_given_up() => return Err(QueueError::Unavailable(reason)),
        };
        if outcome.as_ref().err().is_none_or(is_answer) {
            connection.hear();
        }
        if let Err(error) = &outcome
            && leads_nowhere(error)
        {
            connection.give_up(error.into());
        }
        Ok(outcome?)
    }

    /// Says that nothing is heard on a connection whose commands have no time-out.
    pub(super) fn is_silent(&self) {
        if let State::Up(connection) = &*self.state.borrow() {
            connection.give_up(Reason::new("the server does not answer"));
        }
    }

    async fn connection(&self) -> Result<Arc<Connection>, QueueError> {
        if let State::Up(connection) = &*self.state.borrow() {
            return Ok(Arc::clone(connection));
        }
        let (mut state, shortest) = (self.state.clone(), Instant::now() + SHORT_WAIT);
        loop {
            let (since, reason) = match &*state.borrow_and_update() {
                State::Up(connection) => return Ok(Arc::clone(connection)),
                State::Down { since, reason } => (*since, reason.clone()),
            };
            let until = (since + COMMAND_TIMEOUT).max(shortest);
            match timeout_at(until, state.changed()).await {
                Ok(Ok(())) => {}
                _ => return Err(QueueError::Unavailable(reason)),
            }
        }
    }

    /// Closes the connection. Nothing is lost when commands are under way.
    pub(super) fn close(&self) {
        self.supervisor.abort();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

/// Replaces the connection whenever it has to be, for ever.
async fn supervise(recipe: Recipe, mut live: Live, state: watch::Sender<State>) {
    let place = recipe.address.place();
    let mut turn = 0;
    loop {
        let made = Instant::now();
        let reason = live.until_lost(!recipe.blocking).await;
        warn!(place, error = %reason, "connection to Redis lost");
        live.connection.give_up(reason.clone());
        drop(live);
        let lost = Instant::now();
        state.send_replace(State::Down { since: lost, reason: reason.clone() });
        // A server that lets us in and is of no use must not be asked again and again.
        let lived_long = made.elapsed() > PAUSES.1;
        let mut pause = if lived_long { Duration::ZERO } else { PAUSES.0 };
        // Each sentinel may have another.
        let mut said = vec![reason];
        live = loop {
            sleep(pause).await;
            pause = (pause * 2).clamp(PAUSES.0, PAUSES.1);
            match open(&recipe, turn).await {
                Ok(live) => break live,
                Err(error) => {
                    turn += 1;
                    let reason = reason_of(error);
                    if !said.contains(&reason) {
                        warn!(place, error = %reason, "cannot connect to Redis");
                        said.push(reason.clone());
                    }
                    state.send_replace(State::Down { since: lost, reason });
                }
            }
        };
        info!(place, "connected to Redis again");
        state.send_replace(State::Up(Arc::clone(&live.connection)));
    }
}

fn reason_of(error: QueueError) -> Reason {
    match error {
        QueueError::Unavailable(reason) | QueueError::Refused(reason) => reason,
        other => Reason::new(other.to_string()),
    }
}

impl Live {
    /// Waits until the connection is of no use, and says why.
    async fn until_lost(&mut self, ask: bool) -> Reason {
        let connection = Arc::clone(&self.connection);
        let silent = async {
            if !ask {
                std::future::pending::<()>().await;
            }
            until_silent(&connection).await;
        };
        tokio::select! {
            ended = &mut self.task => match ended {
                Ok(Err(error)) => Reason::from(&error),
                _ => Reason::new("connection closed"),
            },
            reason = connection.until_given_up() => reason,
            () = silent => Reason::new("the server does not answer"),
        }
    }
}

/// Asks the server again and again, until it is silent.
async fn until_silent(connection: &Connection) {
    loop {
        sleep(HEARTBEAT).await;
        let asked = Instant::now();
        // Whatever it answers, it answers. A connection that is lost ends its task.
        match timeout(COMMAND_TIMEOUT, connection.client.ping::<()>(None)).await {
            Ok(Err(error)) if *error.kind() == ErrorKind::Timeout => {}
            Err(_) => {}
            Ok(_) => continue,
        }
        if connection.heard() < asked {
            return;
        }
    }
}

/// Makes a connection, to a server that can write as far as is known.
async fn open(recipe: &Recipe, turn: usize) -> Result<Live, QueueError> {
    let client = client(recipe, turn)?;
    let task = client.init().await?;
    let given_up = watch::Sender::new(None);
    let heard = Mutex::new(Instant::now());
    let connection = Arc::new(Connection { client: client.clone(), given_up, heard });
    let live = Live { connection, task };
    // A name is of use to those who look at the server; nothing depends on it.
    let set_name = CustomCommand::new_static("CLIENT", None, false);
    let _ = timeout(CONNECT_TIMEOUT, client.custom::<(), _>(set_name, vec!["SETNAME", NAME])).await;
    let write = recipe.write.evalsha_with_reload::<(), _, _>(
        &client,
        Vec::<String>::new(),
        vec![recipe.write_key.as_str()],
    );
    match timeout(CONNECT_TIMEOUT, write).await {
        Ok(Err(error)) if leads_nowhere(&error) || !is_answer(&error) => Err(error.into()),
        Ok(_) => Ok(live),
        Err(_) => Err(Error::new(ErrorKind::Timeout, "no answer").into()),
    }
}

fn client(recipe: &Recipe, turn: usize) -> Result<Client, QueueError> {
    let mut builder = Builder::from_config(recipe.address.config(turn)?);
    builder
        .with_connection_config(|connection| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = CONNECT_TIMEOUT;
            // A script whose answer was lost must not run twice behind our back: a claim would
            // overwrite its own leases.
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = 100_000;
            // A server that vanished without closing the connection: the kernel gives it up.
            connection.tcp.user_timeout = Some(VANISHED_AFTER);
            connection.tcp.keepalive = Some(TcpKeepalive::new().with_time(VANISHED_AFTER));
        })
        .with_performance_config(|performance| {
            performance.default_command_timeout =
                if recipe.blocking { Duration::ZERO } else { COMMAND_TIMEOUT };
        });
    builder.build().map_err(|error| QueueError::Setup(format!("REDIS_URL: {}", error.details())))
}
