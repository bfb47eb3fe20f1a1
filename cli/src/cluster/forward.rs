//! Ports of pods by port-forward, with the user's own rights: the only way into a proxy's loopback ports from outside.
//!
//! The stream is the connection itself; no local port is opened that others on this machine could use.

use super::Cluster;
use super::explain::{self, Doing};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// A connection to a port of a pod. Closed when dropped.
pub struct Forwarded {
    stream: DuplexStream,
    error: Option<Pin<Box<dyn Future<Output = Option<String>> + Send>>>,
}

impl Cluster {
    /// Connects to a port on a pod's loopback. The error is one line, for lists of what did not answer.
    pub async fn forward(&self, namespace: &str, pod: &str, port: u16) -> Result<Forwarded, String> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let opened = api.portforward(pod, &[port]).await;
        let mut forwarder = opened.map_err(|error| match &error {
            kube::Error::Api(status) if status.code == 404 => format!("there is no pod {namespace}/{pod} any more"),
            kube::Error::Api(_) | kube::Error::Auth(_) => {
                // What was asked is a GET that becomes a WebSocket.
                let doing = Doing { verb: "get", what: "pods/portforward", namespace: Some(namespace) };
                explain::refused(self, &error, doing).message
            }
            kube::Error::UpgradeConnection(cause) => format!("no port-forward to {namespace}/{pod}: {cause}"),
            other => explain::transport(other),
        })?;
        let stream = forwarder.take_stream(port).ok_or("the port-forward has no stream")?;
        let error = forwarder.take_error(port).map(|error| Box::pin(error) as _);
        Ok(Forwarded { stream, error })
    }
}

impl AsyncRead for Forwarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        // The end may have a reason: nobody listens on that port, the pod has gone.
        if let Poll::Ready(Ok(())) = read
            && buf.filled().len() == before
            && buf.remaining() > 0
            && let Some(error) = &mut self.error
            && let Poll::Ready(said) = error.as_mut().poll(cx)
        {
            self.error = None;
            if let Some(said) = said {
                return Poll::Ready(Err(std::io::Error::other(reason(&said))));
            }
        }
        read
    }
}

/// The kubelet's message, without the long way that it took.
fn reason(said: &str) -> String {
    let said = said.trim();
    if said.contains("connection refused") {
        return "nothing listens on that port of the pod".into();
    }
    said.chars().filter(|c| !c.is_control()).take(300).collect()
}

impl AsyncWrite for Forwarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_story_is_made_short() {
        let said = "error forwarding port 4191 to pod abc, uid : failed to execute portforward in network namespace \
                    \"/var/run/netns/cni-1\": failed to connect to localhost:4191 inside namespace \"abc\", IPv4: dial \
                    tcp4 127.0.0.1:4191: connect: connection refused IPv6 dial tcp6: address localhost: no suitable";
        assert_eq!(reason(said), "nothing listens on that port of the pod");
        assert_eq!(reason("a\x1b[31mb\n"), "a[31mb");
    }
}
