//! The three services of Linkerd's proxy API and our extensions to it, as streams of what the registry knows.
//!
//! Messages are encoded once per change and shared by all streams, so the services are written here instead of taken from
//! the generated code, which would encode for each. A stream holds its subscription and the last set that it sent.

use crate::index::{Asked, Source};
use crate::registry::{Answer, Query, Registry, Snapshot, Subscription, difference, whole};
use bytes::{BufMut, Bytes};
use futures_util::stream::{self, Stream};
use gossamer_api::kubernetes::Name;
use gossamer_api::policy::Target;
use gossamer_api::process::grpc::PeerIdentity;
use gossamer_api::process::stop::Stop;
use gossamer_api::wire::{self, mesh};
use gossamer_api::workload::Workload;
use linkerd2_proxy_api::{destination, inbound, outbound};
use prost::Message;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// Decides whether a peer may ask for what concerns a workload. `None`: everybody may.
pub type Admit = Arc<dyn Fn(Option<&PeerIdentity>, &Workload) -> Result<(), Status> + Send + Sync>;

/// What every request needs.
#[derive(Clone)]
pub struct State {
    /// What is known.
    pub registry: Registry,
    /// Who may ask.
    pub admit: Option<Admit>,
    /// Ends streams.
    pub stop: Stop,
}

/// `Destination`, `OutboundPolicies`, `InboundServerPolicies` and our `Extensions`.
pub fn services(state: State) -> Routes {
    let state = Arc::new(state);
    Routes::new(Destination(state.clone()))
        .add_service(Outbound(state.clone()))
        .add_service(Inbound(state.clone()))
        .add_service(Extensions(state))
}

/// Where endpoints and profiles are asked for.
#[derive(Clone)]
struct Destination(Arc<State>);

/// Where outbound policies are asked for.
#[derive(Clone)]
struct Outbound(Arc<State>);

/// Where inbound policies are asked for.
#[derive(Clone)]
struct Inbound(Arc<State>);

/// Where is asked for what Linkerd's API cannot carry.
#[derive(Clone)]
struct Extensions(Arc<State>);

// ---- questions -----------------------------------------------------------------------------------------------------

impl State {
    fn destination(&self, from: Request<destination::GetDestination>) -> Result<Subscription, Status> {
        let (workload, peer) = (workload_of(&from.get_ref().context_token), peer_of(&from));
        self.check(peer.as_ref(), &workload)?;
        let source = self.source(&workload);
        let path = from.into_inner().path;
        let target = Target::Authority(path.clone());
        let asked = self.registry.read(|index| match index.resolve(&target, &source.namespace) {
            Some(Asked::Service(service, port)) => Ok((service, port, None)),
            Some(Asked::Instance(service, pod, port)) => Ok((service, port, Some(pod))),
            Some(Asked::Workload(..) | Asked::Address(_)) => {
                Err(Status::invalid_argument(format!("{path:?} is an address; a name is needed")))
            }
            None => Err(Status::invalid_argument(format!("{path:?} is not the name of a service"))),
        });
        let (service, port, pod) = asked?;
        let local = self.registry.read(|index| index.is_local(&service));
        // Whatever does not count in the answer is left out of the question, so that it is shared.
        let source = Source {
            namespace: String::new(),
            node: if local { source.node } else { String::new() },
            zone: source.zone,
        };
        Ok(self.registry.subscribe(Query::Endpoints(service, port, pod, source)))
    }

    fn profile(&self, from: Request<destination::GetDestination>) -> Result<Subscription, Status> {
        let (workload, peer) = (workload_of(&from.get_ref().context_token), peer_of(&from));
        self.check(peer.as_ref(), &workload)?;
        let path = from.into_inner().path;
        let target = path.parse().map_or(Target::Authority(path), Target::Addr);
        let source = self.source_for(&target, &workload);
        if self.registry.read(|index| index.resolve(&target, &source.namespace)).is_none() {
            // What tells a proxy not to ask again.
            return Err(Status::invalid_argument(format!("{target} is not the name of a service")));
        }
        Ok(self.registry.subscribe(Query::Profile(target, source)))
    }

    fn outbound(&self, from: Request<outbound::TrafficSpec>) -> Result<Subscription, Status> {
        let peer = peer_of(&from);
        let (workload, target) =
            wire::traffic_spec_from_proto(from.into_inner()).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let workload = workload_of(&workload);
        self.check(peer.as_ref(), &workload)?;
        let source = self.source_for(&target, &workload);
        Ok(self.registry.subscribe(Query::Outbound(target, source)))
    }

    fn extensions(&self, from: Request<mesh::WatchExtensions>) -> Result<Subscription, Status> {
        let peer = peer_of(&from);
        let (workload, target) = wire::watch_extensions_from_proto(from.into_inner())
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let workload = workload_of(&workload);
        self.check(peer.as_ref(), &workload)?;
        let source = self.source_for(&target, &workload);
        Ok(self.registry.subscribe(Query::Extensions(target, source)))
    }

    fn inbound(&self, from: Request<inbound::PortSpec>) -> Result<Subscription, Status> {
        let peer = peer_of(&from);
        let (workload, port) =
            wire::port_spec_from_proto(from.into_inner()).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let workload = workload_of(&workload);
        self.check(peer.as_ref(), &workload)?;
        Ok(self.registry.subscribe(Query::Server(Name::new(&workload.ns, &workload.pod), port)))
    }

    fn check(&self, peer: Option<&PeerIdentity>, workload: &Workload) -> Result<(), Status> {
        self.admit.as_ref().map_or(Ok(()), |admit| admit(peer, workload))
    }

    fn source(&self, workload: &Workload) -> Source {
        self.registry.read(|index| index.source(&workload.ns, &workload.pod, &workload.node_name))
    }

    /// Policies differ by namespace; only single addresses also tell whether they are in the same zone.
    fn source_for(&self, target: &Target, workload: &Workload) -> Source {
        let source = self.source(workload);
        let single = self.registry.read(|index| {
            !matches!(index.resolve(target, &source.namespace), Some(Asked::Service(..) | Asked::Address(_)) | None)
        });
        let zone = if single { source.zone } else { String::new() };
        Source { namespace: source.namespace, node: String::new(), zone }
    }
}

/// `{"ns":"NAMESPACE","pod":"POD","nodeName":"NODE"}`, or `NAMESPACE:POD` as old proxies write it. What can't be read
/// is a workload without a name, for which little is known.
fn workload_of(text: &str) -> Workload {
    serde_json::from_str(text).unwrap_or_else(|_| match text.split_once(':') {
        Some((ns, pod)) if !text.starts_with('{') => {
            Workload { ns: ns.to_string(), pod: pod.to_string(), ..Workload::default() }
        }
        _ => Workload::default(),
    })
}

fn peer_of<T>(request: &Request<T>) -> Option<PeerIdentity> {
    request.extensions().get().cloned()
}

// ---- answers -------------------------------------------------------------------------------------------------------

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// The present answer, alone.
fn once(subscription: Result<Subscription, Status>) -> Result<Bytes, Status> {
    match subscription?.answer() {
        Answer::Message(message) => Ok(message),
        Answer::Missing | Answer::Endpoints(_) => Err(missing()),
    }
}

/// The present answer, and again whenever it changes, until what was asked for is gone or the process stops.
fn watch(subscription: Result<Subscription, Status>, stop: &Stop) -> Result<Messages, Status> {
    let mut subscription = subscription?;
    let mut state = Following::default();
    state.take(subscription.answer())?;
    let stop = stop.clone();
    Ok(Box::pin(stream::unfold((subscription, state, stop), |(mut subscription, mut state, stop)| async move {
        loop {
            if let Some(message) = state.messages.pop_front() {
                return Some((Ok(message), (subscription, state, stop)));
            }
            if state.ended {
                return None;
            }
            tokio::select! {
                () = subscription.changed() => {}
                () = stop.stopping() => return None,
            }
            if let Err(status) = state.take(subscription.answer()) {
                state.ended = true;
                return Some((Err(status), (subscription, state, stop)));
            }
        }
    })))
}

/// What a stream has sent, and what it will send next: bounded by one answer, because the next is taken when those are
/// sent.
#[derive(Default)]
struct Following {
    last: Option<Arc<Snapshot>>,
    messages: VecDeque<Bytes>,
    ended: bool,
}

impl Following {
    fn take(&mut self, answer: Answer) -> Result<(), Status> {
        match answer {
            Answer::Missing => return Err(missing()),
            Answer::Message(message) => self.messages.push_back(message),
            Answer::Endpoints(now) => {
                match &self.last {
                    None => self.messages.extend(whole(&now.set)),
                    Some(last) if last.version + 1 == now.version => self.messages.extend(now.diff.iter().cloned()),
                    // Some were skipped.
                    Some(last) => self.messages.extend(difference(&last.set, &now.set)),
                }
                self.last = Some(now);
            }
        }
        Ok(())
    }
}

fn missing() -> Status {
    Status::not_found("nothing is known of it")
}

// ---- gRPC ----------------------------------------------------------------------------------------------------------

/// One method: a question to a subscription.
struct Ask<Q>(Arc<State>, fn(&State, Request<Q>) -> Result<Subscription, Status>);

impl<Q> ServerStreamingService<Q> for Ask<Q> {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Ready<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        ready(watch((self.1)(&self.0, request), &self.0.stop).map(Response::new))
    }
}

impl<Q> UnaryService<Q> for Ask<Q> {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        ready(once((self.1)(&self.0, request)).map(Response::new))
    }
}

type HttpRequest = http::Request<tonic::body::Body>;
type HttpResponse = http::Response<tonic::body::Body>;
type Answering = Pin<Box<dyn Future<Output = Result<HttpResponse, Infallible>> + Send>>;

fn streaming<Q: Message + Default + 'static>(ask: Ask<Q>, request: HttpRequest) -> Answering {
    Box::pin(async move { Ok(Grpc::new(Encoded::<Q>::default()).server_streaming(ask, request).await) })
}

fn unary<Q: Message + Default + 'static>(ask: Ask<Q>, request: HttpRequest) -> Answering {
    Box::pin(async move { Ok(Grpc::new(Encoded::<Q>::default()).unary(ask, request).await) })
}

fn unimplemented() -> Answering {
    Box::pin(ready(Ok(Status::unimplemented("no such method").into_http())))
}

macro_rules! service {
    ($service:ty, $name:literal, |$state:ident, $request:ident| { $($method:literal => $answer:expr,)* }) => {
        impl NamedService for $service {
            const NAME: &'static str = $name;
        }

        impl tower::Service<HttpRequest> for $service {
            type Response = HttpResponse;
            type Error = Infallible;
            type Future = Answering;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, $request: HttpRequest) -> Answering {
                let $state = self.0.clone();
                match $request.uri().path() {
                    $(concat!("/", $name, "/", $method) => $answer,)*
                    _ => unimplemented(),
                }
            }
        }
    };
}

service!(Destination, "io.linkerd.proxy.destination.Destination", |state, request| {
    "Get" => streaming(Ask(state, State::destination), request),
    "GetProfile" => streaming(Ask(state, State::profile), request),
});
service!(Outbound, "io.linkerd.proxy.outbound.OutboundPolicies", |state, request| {
    "Get" => unary(Ask(state, State::outbound), request),
    "Watch" => streaming(Ask(state, State::outbound), request),
});
service!(Inbound, "io.linkerd.proxy.inbound.InboundServerPolicies", |state, request| {
    "GetPort" => unary(Ask(state, State::inbound), request),
    "WatchPort" => streaming(Ask(state, State::inbound), request),
});
service!(Extensions, "gossamer.v1.Extensions", |state, request| {
    "Watch" => streaming(Ask(state, State::extensions), request),
});

/// Reads questions, writes what is encoded already.
struct Encoded<Q>(PhantomData<fn() -> Q>);

impl<Q> Default for Encoded<Q> {
    fn default() -> Self {
        Encoded(PhantomData)
    }
}

impl<Q: Message + Default + 'static> Codec for Encoded<Q> {
    type Encode = Bytes;
    type Decode = Q;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<Q> Encoder for Encoded<Q> {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl<Q: Message + Default> Decoder for Encoded<Q> {
    type Item = Q;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Q>, Status> {
        Q::decode(buffer).map(Some).map_err(|error| Status::invalid_argument(error.to_string()))
    }
}
