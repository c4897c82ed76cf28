//! A stream whose other end has to keep pace: what is written is fetched within a time, or the stream ends.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes that are to be fetched within each period.
const STEP: usize = 64 << 10;

/// A stream that ends with an error once its peer does not fetch what is written to it.
pub struct Paced<I> {
    stream: I,
    period: Duration,
    /// Since a write had to wait.
    late: Option<Pin<Box<Sleep>>>,
    /// Bytes since then.
    taken: usize,
}

impl<I> Paced<I> {
    /// With so much time for each 64 KiB.
    pub fn new(stream: I, period: Duration) -> Paced<I> {
        Paced { stream, period, late: None, taken: 0 }
    }

    fn wrote(&mut self, polled: Poll<io::Result<usize>>, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Pending => {
                let period = self.period;
                let late = self.late.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + period)));
                ready!(late.as_mut().poll(context));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Ready(Ok(bytes)) => {
                self.taken += bytes;
                if self.taken >= STEP {
                    self.rest();
                }
                Poll::Ready(Ok(bytes))
            }
            other => other,
        }
    }

    fn rest(&mut self) {
        (self.late, self.taken) = (None, 0);
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Paced<I> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Paced<I> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.wrote(polled, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.wrote(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(context))?;
        // Nothing is left to be fetched.
        this.rest();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn run(work: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(work);
    }

    #[test]
    fn what_is_not_fetched_ends_the_stream() {
        run(async {
            let (mut client, server) = duplex(1000);
            let mut server = Paced::new(server, Duration::from_millis(50));
            // A byte now and then is no pace.
            tokio::spawn(async move {
                while client.read_u8().await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await
                }
            });
            let error = server.write_all(&[0; 100_000]).await.expect_err("too slow");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn what_is_fetched_in_time_goes_on() {
        run(async {
            let (mut client, server) = duplex(1000);
            let mut server = Paced::new(server, Duration::from_secs(60));
            let reader = tokio::spawn(async move {
                let mut all = Vec::new();
                client.read_to_end(&mut all).await.expect("read").min(all.len())
            });
            server.write_all(&[7; 200_000]).await.expect("written");
            server.flush().await.expect("flushed");
            assert!(server.late.is_none());
            drop(server);
            assert_eq!(reader.await.expect("done"), 200_000);
        });
    }
}
