//! Answers names of the mesh on the bridge's address. Knows nothing itself: asks a function. Everything else is what the
//! machine outside says, or does not exist where there is no way out.

use super::outside::{self, Outside};
use crate::error::{Context, Result};
use gossamer_api::defaults::CLUSTER_DOMAIN;
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;

/// Addresses of a name in lower case without a final dot; None when there is no such name.
pub type Resolve = Arc<dyn Fn(&str) -> Option<Vec<IpAddr>> + Send + Sync>;

/// Seconds that an answer may be kept. Replicas come and go.
const TTL: u32 = 1;
/// Questions to the machine outside at once; more are dropped, and asked again by whoever asked.
const OUTSIDE: usize = 64;
/// Longer queries are not DNS over UDP without negotiation.
const QUERY_BYTES: usize = 1232;

/// Answers until the socket fails.
pub async fn serve(socket: UdpSocket, resolve: Resolve, outside: Option<Arc<Outside>>) {
    let (socket, places) = (Arc::new(socket), Arc::new(Semaphore::new(OUTSIDE)));
    let mut query = vec![0; QUERY_BYTES];
    loop {
        let (length, from) = match socket.recv_from(&mut query).await {
            Ok(received) => received,
            // A client that left before its answer shows up here.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return tracing::error!(%error, "DNS has stopped"),
        };
        if let Some(outside) = &outside
            && let Some(name) = name(&query[..length])
            && outside::is_outside(&name, CLUSTER_DOMAIN)
            && resolve(&name).is_none()
        {
            if name == outside::HOST {
                let here: Resolve = Arc::new(|_| Some(vec![outside::HOST_ADDRESS.into()]));
                if let Some(reply) = answer(&query[..length], &here) {
                    let _ = socket.send_to(&reply, from).await;
                }
            } else if let Ok(place) = places.clone().try_acquire_owned() {
                let (socket, outside, query) = (socket.clone(), outside.clone(), query[..length].to_vec());
                tokio::spawn(async move {
                    let found = outside.resolve(&name).await.ok().filter(|found| !found.is_empty());
                    let found: Resolve = Arc::new(move |_| found.clone());
                    if let Some(reply) = answer(&query, &found) {
                        let _ = socket.send_to(&reply, from).await;
                    }
                    drop(place);
                });
            }
            continue;
        }
        if let Some(reply) = answer(&query[..length], &resolve)
            && let Err(error) = socket.send_to(&reply, from).await
        {
            tracing::debug!(%error, %from, "a DNS answer was lost");
        }
    }
}

/// Binds where the cells' `resolv.conf` points to.
pub async fn bind(address: Ipv4Addr) -> Result<UdpSocket> {
    UdpSocket::bind((address, 53)).await.context(format!("DNS on {address}"))
}

/// The cells' `/etc/resolv.conf` for workloads of a namespace, as Kubernetes writes it. Names are asked for again for some
/// seconds: the control plane, which answers, may be starting anew.
pub fn resolv_conf(server: Ipv4Addr, namespace: &str, domain: &str) -> String {
    format!(
        "nameserver {server}\nsearch {namespace}.svc.{domain} svc.{domain} {domain}\noptions ndots:5 timeout:1 attempts:5\n"
    )
}

/// What a query asks for, in lower case without a final dot.
fn name(query: &[u8]) -> Option<String> {
    let query = Message::from_vec(query).ok()?;
    let [question] = &query.queries[..] else { return None };
    Some(question.name().to_ascii().to_ascii_lowercase().trim_end_matches('.').to_string())
}

/// The answer to a query; None for what is no query.
fn answer(query: &[u8], resolve: &Resolve) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    let [question] = &query.queries[..] else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return reply.to_vec().ok();
    };
    reply.add_query(question.clone());
    if query.metadata.op_code != OpCode::Query {
        reply.metadata.response_code = ResponseCode::NotImp;
        return reply.to_vec().ok();
    }

    let name = question.name().to_ascii().to_ascii_lowercase();
    match resolve(name.trim_end_matches('.')) {
        None => reply.metadata.response_code = ResponseCode::NXDomain,
        Some(addresses) => {
            reply.metadata.authoritative = true;
            for address in addresses {
                let data = match (address, question.query_type()) {
                    (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => RData::A(ip.into()),
                    (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => RData::AAAA(ip.into()),
                    _ => continue,
                };
                reply.add_answer(Record::from_rdata(question.name().clone(), TTL, data));
            }
        }
    }
    reply.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;
    use proptest::prelude::*;

    fn names() -> Resolve {
        Arc::new(|name| (name == "web.demo.svc.cluster.local").then(|| vec![IpAddr::from([10, 77, 0, 9])]))
    }

    fn ask(name: &str, kind: RecordType) -> Message {
        let mut query = Message::query();
        query.metadata.id = 7;
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        Message::from_vec(&answer(&query.to_vec().unwrap(), &names()).unwrap()).unwrap()
    }

    #[test]
    fn a_known_name_has_its_address_in_any_case() {
        let reply = ask("WEB.demo.svc.cluster.local.", RecordType::A);
        assert_eq!((reply.metadata.id, reply.metadata.response_code), (7, ResponseCode::NoError));
        assert_eq!(reply.answers[0].data, RData::A(Ipv4Addr::new(10, 77, 0, 9).into()));
    }

    #[test]
    fn a_name_without_an_address_of_the_kind_exists_all_the_same() {
        let reply = ask("web.demo.svc.cluster.local", RecordType::AAAA);
        assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 0));
    }

    #[test]
    fn other_names_do_not_exist() {
        assert_eq!(ask("example.com", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            answer(&bytes, &names());
            name(&bytes);
        }
    }
}
