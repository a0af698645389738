//! Connections: how many there may be, how long one may be quiet, and how much one may ask at once.
//!
//! Where there are as many as there may be, those that were quiet for longest give way to new ones;
//! one whose request is being answered never does.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use poem::{
    Endpoint, Response,
    http::{Request, uri::Scheme},
    web::{LocalAddr, RemoteAddr},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// A connection on which nothing happens for this long is closed; so is one whose client does not
/// send the whole head of a request in this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a connection that has to go may take to end what it is about.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long nothing is accepted after a failure.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Requests that are answered at the same time on one connection of HTTP/2.
const STREAMS: u32 = 100;
/// Bytes of an answer that wait in one stream for a client that does not read.
const STREAM_BYTES: usize = 64 << 10;
/// Bytes of the head of a request at most.
const HEAD_BYTES: usize = 64 << 10;
/// Of all connections, so many give way at once: looking for them costs time.
const GIVE_WAY: usize = 32;

/// Serves until `shutdown` is ready, at most so many connections at once; then takes no new ones, and
/// returns when the requests in progress have ended, or after `grace`.
///
/// # Errors
/// The listener cannot be used.
pub async fn serve(
    listener: std::net::TcpListener,
    api: impl Endpoint<Output = Response> + 'static,
    most: usize,
    shutdown: impl Future<Output = ()>,
    grace: Duration,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let local = listener.local_addr()?;
    let open = Arc::new(Open::new(most));
    let (stop, stopped) = watch::channel(false);
    let api = Arc::new(api);
    let mut tasks = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, every try fails at once.
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let seat = tokio::select! {
            () = &mut shutdown => break,
            seat = open.seat() => seat,
        };
        while tasks.try_join_next().is_some() {}
        let seat = open.enter(seat);
        let (api, stopped) = (Arc::clone(&api), stopped.clone());
        tasks.spawn(async move {
            answer(stream, (local, remote), api, &seat.connection, stopped, grace).await;
        });
    }
    drop(listener);
    // Nobody listens where there is no connection.
    let _ = stop.send(true);
    let all_ended = timeout(grace, async { while tasks.join_next().await.is_some() {} });
    // Those that are left end with the set.
    let _ = all_ended.await;
    Ok(())
}

/// Answers all requests of a connection.
async fn answer<E: Endpoint<Output = Response> + 'static>(
    stream: TcpStream,
    (local, remote): (SocketAddr, SocketAddr),
    api: Arc<E>,
    connection: &Arc<Connection>,
    mut stopped: watch::Receiver<bool>,
    grace: Duration,
) {
    // Without it, small answers may wait for the client's acknowledgement. The stream works all the
    // same.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request: Request<Incoming>| {
        let (api, busy) = (Arc::clone(&api), Busy::of(connection));
        let addresses = (LocalAddr(local.into()), RemoteAddr(remote.into()));
        async move {
            let _busy = busy;
            let request = (request, addresses.0, addresses.1, Scheme::HTTP).into();
            Ok::<_, Infallible>(poem::http::Response::from(api.get_response(request).await))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_send_buf_size(STREAM_BYTES)
        .max_header_list_size(HEAD_BYTES as u32);
    let stream = TokioIo::new(Watched { stream, connection: Arc::clone(connection) });
    let served = builder.serve_connection(stream, service);
    tokio::pin!(served);
    let patience = tokio::select! {
        // However it ends, there is nobody to tell.
        _ = served.as_mut() => return,
        () = connection.leave.notified() => LEAVE_TIMEOUT,
        () = connection.idle() => LEAVE_TIMEOUT,
        _ = stopped.wait_for(|stopped| *stopped) => {
            if connection.is_busy() { grace } else { LEAVE_TIMEOUT.min(grace) }
        }
    };
    served.as_mut().graceful_shutdown();
    let _ = timeout(patience, served).await;
}

/// The connections that there are.
struct Open {
    seats: Arc<Semaphore>,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    next: AtomicU64,
    began: Instant,
}

impl Open {
    fn new(most: usize) -> Self {
        Self {
            seats: Arc::new(Semaphore::new(most)),
            connections: Mutex::default(),
            next: AtomicU64::new(0),
            began: Instant::now(),
        }
    }

    /// Waits for a place, and asks others to give theirs up.
    async fn seat(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(seat) = Arc::clone(&self.seats).try_acquire_owned() {
                return seat;
            }
            self.clear_seats();
            let seat = Arc::clone(&self.seats).acquire_owned();
            // One that was busy may be idle by then.
            if let Ok(Ok(seat)) = timeout(ACCEPT_PAUSE, seat).await {
                return seat;
            }
        }
    }

    fn clear_seats(&self) {
        let connections = self.all();
        let mut idle: Vec<&Arc<Connection>> =
            connections.values().filter(|connection| connection.may_leave()).collect();
        idle.sort_unstable_by_key(|connection| connection.used.load(Ordering::Relaxed));
        for connection in idle.into_iter().take(GIVE_WAY) {
            connection.is_leaving.store(true, Ordering::Relaxed);
            connection.leave.notify_one();
        }
    }

    fn enter(self: &Arc<Self>, seat: OwnedSemaphorePermit) -> Seat {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection {
            requests: AtomicUsize::new(0),
            used: AtomicU64::new(0),
            began: self.began,
            is_leaving: AtomicBool::new(false),
            leave: Notify::new(),
        });
        connection.use_now();
        self.all().insert(id, Arc::clone(&connection));
        Seat { open: Arc::clone(self), id, connection, _permit: seat }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        // Every change is one call, so that a panic cannot leave half of it.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a connection, until this is dropped.
struct Seat {
    open: Arc<Open>,
    id: u64,
    connection: Arc<Connection>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.open.all().remove(&self.id);
    }
}

/// What is known of a connection.
struct Connection {
    /// Requests that are being answered.
    requests: AtomicUsize,
    /// When bytes last moved, in milliseconds since `began`.
    used: AtomicU64,
    began: Instant,
    is_leaving: AtomicBool,
    leave: Notify,
}

impl Connection {
    fn use_now(&self) {
        self.used.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }

    fn may_leave(&self) -> bool {
        !self.is_busy() && !self.is_leaving.load(Ordering::Relaxed)
    }

    /// Ends when no bytes have moved for too long and nobody is working on an answer.
    async fn idle(&self) {
        loop {
            let used = Duration::from_millis(self.used.load(Ordering::Relaxed));
            let quiet = self.began.elapsed().saturating_sub(used);
            let left = match IDLE_TIMEOUT.checked_sub(quiet) {
                Some(left) if !left.is_zero() => left,
                _ if self.is_busy() => IDLE_TIMEOUT,
                _ => return,
            };
            sleep(left).await;
        }
    }
}

/// A request is being answered, until this is dropped.
struct Busy(Arc<Connection>);

impl Busy {
    fn of(connection: &Arc<Connection>) -> Self {
        connection.requests.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(connection))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.use_now();
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that notes when bytes move.
struct Watched {
    stream: TcpStream,
    connection: Arc<Connection>,
}

impl Watched {
    fn noting<T>(&self, moved: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(moved, Poll::Ready(Ok(_))) {
            self.connection.use_now();
        }
        moved
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.noting(read)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.noting(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.noting(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
