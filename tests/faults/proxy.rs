//! A TCP proxy that cuts connections in the middle of a reply, delays replies, lets them vanish, or
//! leads to another server.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

use super::site::{Site, Stores};
use crate::common::TestPostgres;

/// A site whose processes reach one of its stores through a proxy.
pub async fn behind_a_proxy(of_redis: bool) -> (Site, Proxy) {
    let mut site = Site::new(Stores::Shared, &[]).await;
    let direct = match of_redis {
        true => site.redis_server.as_ref().unwrap().port(),
        false => TestPostgres::shared().port(),
    };
    let proxy = Proxy::before(direct).await;
    site.change_settings(&format!(":{direct}"), &format!(":{}", proxy.port()));
    (site, proxy)
}

/// A proxy before one server; it ends with this value.
pub struct Proxy {
    port: u16,
    faults: Arc<Faults>,
    _alive: watch::Sender<()>,
}

#[derive(Default)]
struct Faults {
    /// Where new connections lead.
    target: AtomicU16,
    /// Connections still to be cut.
    cuts: AtomicUsize,
    /// Bytes of replies that pass before the next cut.
    cut_after: AtomicU64,
    /// How long each piece of a reply is held back, in milliseconds.
    delay: AtomicU64,
    /// Connections that were cut.
    cut: AtomicUsize,
    /// Whether no reply comes through.
    silent: AtomicBool,
    /// Connections made so far.
    made: AtomicUsize,
    /// The first of these that still work; the others are silent, and do not end.
    alive_from: AtomicUsize,
}

impl Proxy {
    /// Listens on a port of its own, and passes on to `port`.
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own_port = listener.local_addr().unwrap().port();
        let faults = Arc::new(Faults { target: port.into(), ..Faults::default() });
        let (alive, ended) = watch::channel(());
        tokio::spawn({
            let faults = Arc::clone(&faults);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (faults, mut ended) = (Arc::clone(&faults), ended.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = pass(client, &faults) => {}
                            _ = ended.changed() => {}
                        }
                    });
                }
            }
        });
        Self { port: own_port, faults, _alive: alive }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Leads connections that are made from now on to another port; the others stay as they are.
    pub fn lead_to(&self, port: u16) {
        self.faults.target.store(port, Ordering::SeqCst);
    }

    /// Cuts one connection after so many further bytes of replies.
    pub fn cut_after(&self, bytes: u64) {
        self.faults.cut_after.store(bytes, Ordering::SeqCst);
        self.faults.cuts.fetch_add(1, Ordering::SeqCst);
    }

    /// Connections that were cut so far.
    pub fn cut(&self) -> usize {
        self.faults.cut.load(Ordering::SeqCst)
    }

    /// Lets no reply through, or again.
    pub fn silence(&self, silent: bool) {
        self.faults.silent.store(silent, Ordering::SeqCst);
    }

    /// Lets no reply through on the connections that there are, as if the server behind them had
    /// vanished; new ones find its successor.
    pub fn vanish(&self) {
        let made = self.faults.made.load(Ordering::SeqCst);
        self.faults.alive_from.store(made, Ordering::SeqCst);
    }

    /// Holds back each piece of a reply for so long, from now on.
    pub fn delay(&self, delay: Duration) {
        self.faults.delay.store(delay.as_millis() as u64, Ordering::SeqCst);
    }
}

async fn pass(client: TcpStream, faults: &Faults) {
    let port = faults.target.load(Ordering::SeqCst);
    let number = faults.made.fetch_add(1, Ordering::SeqCst);
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // Whichever side ends, both do.
    tokio::select! {
        () = requests(from_client, to_server) => {}
        () = replies(from_server, to_client, faults, number) => {}
    }
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    // One that fails has ended.
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

async fn replies(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, faults: &Faults, number: usize) {
    let mut piece = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        let delay = faults.delay.load(Ordering::SeqCst);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        while faults.silent.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if number < faults.alive_from.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        let mut passed = read;
        if faults.cuts.load(Ordering::SeqCst) > 0 {
            let left = faults.cut_after.load(Ordering::SeqCst);
            faults.cut_after.store(left.saturating_sub(read as u64), Ordering::SeqCst);
            if left < read as u64 {
                faults.cuts.fetch_sub(1, Ordering::SeqCst);
                faults.cut.fetch_add(1, Ordering::SeqCst);
                passed = left as usize;
            }
        }
        if to.write_all(&piece[..passed]).await.is_err() || passed < read {
            return;
        }
    }
}
