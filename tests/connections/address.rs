//! An address that leads to one server now and to another one later, as a virtual address, a load
//! balancer or a DNS name does. Connections that stand stay where they lead.

use std::sync::{
    Arc,
    atomic::{AtomicU16, AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

/// The address; it ends with this value.
pub struct Address {
    port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    /// Where new connections lead.
    target: AtomicU16,
    /// Connections made so far.
    made: AtomicUsize,
    /// The first of these that is not silent.
    alive_from: AtomicUsize,
}

impl Address {
    /// Leads to a port of this machine.
    pub async fn of(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            target: AtomicU16::new(target),
            made: AtomicUsize::new(0),
            alive_from: AtomicUsize::new(0),
        });
        let task = tokio::spawn({
            let state = Arc::clone(&state);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let number = state.made.fetch_add(1, Ordering::SeqCst);
                    let target = state.target.load(Ordering::SeqCst);
                    tokio::spawn(pass(client, target, number, Arc::clone(&state)));
                }
            }
        });
        Self { port, state, task }
    }

    /// From now on, new connections lead to this port.
    pub fn lead_to(&self, target: u16) {
        self.state.target.store(target, Ordering::SeqCst);
    }

    /// Connections that stand swallow everything from now on, and do not end.
    pub fn silence(&self) {
        self.state.alive_from.store(self.made(), Ordering::SeqCst);
    }

    /// Connections made so far.
    pub fn made(&self) -> usize {
        self.state.made.load(Ordering::SeqCst)
    }

    /// The same database, by this address.
    pub fn dsn(&self, direct: &str) -> String {
        let (rest, database) = direct.rsplit_once('/').unwrap();
        let (rest, _) = rest.rsplit_once(':').unwrap();
        format!("{rest}:{}/{database}", self.port)
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(client: TcpStream, target: u16, number: usize, state: Arc<State>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server, number, &state) => {}
        () = pump(from_server, to_client, number, &state) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, number: usize, state: &State) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let is_silent = number < state.alive_from.load(Ordering::SeqCst);
        if !is_silent && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    if number < state.alive_from.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
}
