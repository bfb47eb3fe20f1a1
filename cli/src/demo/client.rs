//! Calls between the demo's programs: HTTP/1 over kept connections, gRPC over HTTP/2.

use super::figures::PATIENCE;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::Message;

/// Keeps connections to everything it has called.
#[derive(Clone)]
pub(crate) struct Caller {
    http: Client<HttpConnector, Full<Bytes>>,
    grpc: Client<HttpConnector, Full<Bytes>>,
}

/// A response, read whole.
pub(crate) type Answer = Result<(StatusCode, Bytes), String>;

impl Caller {
    pub(crate) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let mut builder = Client::builder(TokioExecutor::new());
        let http = builder.build(connector.clone());
        Caller { http, grpc: builder.http2_only(true).build(connector) }
    }

    pub(crate) async fn call(&self, method: Method, uri: &str) -> Answer {
        let request = Request::builder().method(method).uri(uri).body(Full::default()).map_err(|e| e.to_string())?;
        let (status, body, _) = send(&self.http, request).await?;
        Ok((status, body))
    }

    /// A unary call; the error is the gRPC status.
    pub(crate) async fn unary<I: Message, O: Message + Default>(
        &self,
        server: &str,
        method: &str,
        input: &I,
    ) -> Result<O, String> {
        let uri: Uri = format!("http://{server}{method}").parse().map_err(|e| format!("{e}"))?;
        let request = Request::post(uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(frame(input)))
            .map_err(|e| e.to_string())?;
        let (status, mut body, grpc) = send(&self.grpc, request).await?;
        if status != StatusCode::OK || grpc.as_deref() != Some("0") {
            return Err(format!("status {status}, grpc-status {}", grpc.as_deref().unwrap_or("missing")));
        }
        // A flag, the length, the message.
        if body.len() < 5 {
            return Err("an empty gRPC answer".into());
        }
        O::decode(body.split_off(5)).map_err(|e| e.to_string())
    }
}

/// A message as gRPC sends it.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.encoded_len() as u32);
    frame.put_slice(&message.encode_to_vec());
    frame.freeze()
}

async fn send(
    client: &Client<HttpConnector, Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes, Option<String>), String> {
    let exchange = async {
        let response = client.request(request).await.map_err(|e| crate::error::causes(&e))?;
        let status = response.status();
        let in_head = response.headers().get("grpc-status").cloned();
        let body = response.into_body().collect().await.map_err(|e| e.to_string())?;
        let in_trailers = body.trailers().and_then(|t| t.get("grpc-status")).cloned();
        let grpc = in_trailers.or(in_head).and_then(|v| v.to_str().ok().map(str::to_string));
        Ok((status, body.to_bytes(), grpc))
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err("timed out".into()))
}
