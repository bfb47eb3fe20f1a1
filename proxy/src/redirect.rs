//! Takes a network namespace's TCP connections to the proxy: what shall be redirected as data, and the same data
//! applied through the kernel's nf_tables, without external programs.
//!
//! **Invariant:** the proxy's own connections are never redirected, or they would loop; [`Redirect::rules`] puts the
//! exemptions before every redirection. Applying replaces our table in one transaction and touches no other.

pub mod netlink;

use self::netlink::{APPEND, CREATE, EXCLUSIVE, Message, NetlinkError};
use gossamer_api::settings::Ports;
use ipnet::IpNet;
use std::fmt;

/// Our table, in the family that has IPv4 and IPv6.
pub const TABLE: &str = "gossamer";

/// What is redirected in this network namespace.
#[derive(Clone, Debug, Default)]
pub struct Redirect {
    /// Where connections of the workload go.
    pub outbound_port: u16,
    /// Where connections to the workload go.
    pub inbound_port: u16,
    /// The user whose connections pass: the proxy's.
    pub exempt_uid: Option<u32>,
    /// The socket mark that passes: the proxy's, where everything has one user.
    pub exempt_mark: Option<u32>,
    /// Targets that bypass the outbound proxy.
    pub skip_outbound: Ports,
    /// Ports of the workload that bypass the inbound proxy.
    pub skip_inbound: Ports,
    /// Clients that bypass the inbound proxy: containers within the workload, whose way out leads through here too.
    pub skip_clients: Vec<IpNet>,
    /// The proxy's own ports (inbound, admin, tap), reached as they are.
    pub own_ports: Vec<u16>,
    /// A port where nobody listens but on loopback. With it a connection to a port of the workload where nobody listens is
    /// refused, as it would be without a proxy; without, the proxy accepts it and finds out later.
    pub closed_port: Option<u16>,
}

/// Why redirection can't be set.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The process may not.
    #[error("setting the redirection needs CAP_NET_ADMIN in this network namespace")]
    Privilege(#[source] NetlinkError),
    /// The kernel can't.
    #[error(
        "this kernel lacks what redirection needs (nf_tables with NAT and redirect for the inet family, Linux 5.2)"
    )]
    Kernel(#[source] NetlinkError),
    /// Without an exemption the proxy's own connections would come back to it.
    #[error("redirection needs the proxy's user id or socket mark, to let its own connections pass")]
    NoExemption,
    /// Anything else.
    #[error("the redirection could not be set")]
    Other(#[source] NetlinkError),
}

impl From<NetlinkError> for RedirectError {
    fn from(error: NetlinkError) -> Self {
        match error.source.raw_os_error() {
            // EPERM, EACCES
            Some(1 | 13) => RedirectError::Privilege(error),
            // ENOENT (chain type or expression unknown), EOPNOTSUPP, EPROTONOSUPPORT, EAFNOSUPPORT
            Some(2 | 95 | 93 | 97) => RedirectError::Kernel(error),
            _ => RedirectError::Other(error),
        }
    }
}

impl Redirect {
    /// The rules, in the order in which the kernel reads them.
    pub fn rules(&self) -> Vec<Rule> {
        let rule = |chain, matches: Vec<Match>, verdict| Rule { chain, matches, verdict };
        let pass = |chain, of| rule(chain, vec![of], Verdict::Return);
        let skipped = |chain, ports: &Ports| -> Vec<Rule> {
            let skip = |&(first, last): &(u16, u16)| vec![Match::Tcp, Match::Ports(first, last)];
            ports.ranges().iter().map(|range| rule(chain, skip(range), Verdict::Return)).collect()
        };

        let mut rules = Vec::new();
        rules.extend(self.exempt_mark.map(|mark| pass(Chain::Output, Match::Mark(mark))));
        rules.extend(self.exempt_uid.map(|uid| pass(Chain::Output, Match::User(uid))));
        rules.push(pass(Chain::Output, Match::ToLoopback));
        rules.extend(skipped(Chain::Output, &self.skip_outbound));
        rules.push(rule(Chain::Output, vec![Match::Tcp], Verdict::Redirect(self.outbound_port)));

        rules.push(pass(Chain::Prerouting, Match::FromLoopback));
        for &port in &self.own_ports {
            rules.push(rule(Chain::Prerouting, vec![Match::Tcp, Match::Ports(port, port)], Verdict::Return));
        }
        rules.extend(skipped(Chain::Prerouting, &self.skip_inbound));
        rules.extend(self.skip_clients.iter().map(|net| pass(Chain::Prerouting, Match::From(*net))));
        let to_proxy = Verdict::Redirect(self.inbound_port);
        match self.closed_port {
            Some(closed) => {
                rules.push(rule(Chain::Prerouting, vec![Match::Tcp, Match::Listening], to_proxy));
                // Not let through to be refused where it was meant for: somebody could begin to listen in the meantime.
                rules.push(rule(Chain::Prerouting, vec![Match::Tcp], Verdict::Redirect(closed)));
            }
            None => rules.push(rule(Chain::Prerouting, vec![Match::Tcp], to_proxy)),
        }
        rules
    }

    /// Sets the redirection of the calling thread's network namespace, in place of an earlier one. A kernel that can't
    /// look for listening sockets gets rules without that.
    pub fn apply(&self) -> Result<(), RedirectError> {
        if self.exempt_mark.is_none() && self.exempt_uid.is_none() {
            return Err(RedirectError::NoExemption);
        }
        match apply_rules(&self.rules()) {
            Err(RedirectError::Kernel(_)) if self.closed_port.is_some() => {
                apply_rules(&Redirect { closed_port: None, ..self.clone() }.rules())
            }
            result => result,
        }
    }
}

/// Sets these rules in the calling thread's network namespace, in place of earlier ones.
pub fn apply_rules(rules: &[Rule]) -> Result<(), RedirectError> {
    // Create, delete, create: deletes an earlier table if there is one and never fails on its absence.
    let mut messages = vec![table(NEW_TABLE, CREATE), table(DELETE_TABLE, 0), table(NEW_TABLE, CREATE | EXCLUSIVE)];
    messages.extend([Chain::Output, Chain::Prerouting].map(Chain::message));
    messages.extend(rules.iter().map(Rule::message));
    Ok(transaction(messages)?)
}

/// Ends the redirection of the calling thread's network namespace. Nothing to remove is fine.
pub fn remove() -> Result<(), RedirectError> {
    match transaction(vec![table(DELETE_TABLE, 0)]) {
        Err(error) if !error.is_missing() => Err(error.into()),
        _ => Ok(()),
    }
}

/// The two places where connections begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// Connections of this namespace's processes.
    Output,
    /// Connections that arrive from outside.
    Prerouting,
}

/// What a rule looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The socket's mark.
    Mark(u32),
    /// The socket's user.
    User(u32),
    /// Leaves over the loopback interface.
    ToLoopback,
    /// Arrived over it.
    FromLoopback,
    /// To an IPv4 network of 16 bits.
    ToV4([u8; 2]),
    /// To an IPv6 network of 64 bits.
    ToV6([u8; 8]),
    /// Comes from a network.
    From(IpNet),
    /// Is TCP.
    Tcp,
    /// Target port, first to last. After [`Match::Tcp`].
    Ports(u16, u16),
    /// Somebody listens at the target. After [`Match::Tcp`].
    Listening,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Left as it is.
    Return,
    /// To this port of the namespace.
    Redirect(u16),
}

/// All matches hold, then the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where.
    pub chain: Chain,
    /// When.
    pub matches: Vec<Match>,
    /// What.
    pub verdict: Verdict,
}

/// As `nft` writes it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for one in &self.matches {
            match one {
                Match::Mark(mark) => write!(f, "meta mark {mark:#010x} ")?,
                Match::User(uid) => write!(f, "meta skuid {uid} ")?,
                Match::ToLoopback => f.write_str("oif \"lo\" ")?,
                Match::FromLoopback => f.write_str("iif \"lo\" ")?,
                Match::ToV4([a, b]) => write!(f, "ip daddr {a}.{b}.0.0/16 ")?,
                Match::ToV6(prefix) => write!(f, "ip6 daddr {}/64 ", v6_network(*prefix))?,
                Match::From(IpNet::V4(net)) => write!(f, "ip saddr {net} ")?,
                Match::From(IpNet::V6(net)) => write!(f, "ip6 saddr {net} ")?,
                Match::Tcp => f.write_str("meta l4proto tcp ")?,
                Match::Ports(first, last) if first == last => write!(f, "th dport {first} ")?,
                Match::Ports(first, last) => write!(f, "th dport {first}-{last} ")?,
                Match::Listening => f.write_str("socket transparent { 0, 1 } ")?,
            }
        }
        match self.verdict {
            Verdict::Return => f.write_str("return"),
            Verdict::Redirect(port) => write!(f, "redirect to :{port}"),
        }
    }
}

// ---- nf_tables' numbers: linux/netfilter/nf_tables.h ---------------------------------------------------------------

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const FAMILY_INET: u8 = 1;

const HOOK_PREROUTING: u32 = 0;
const HOOK_OUTPUT: u32 = 3;
/// Where destination NAT belongs.
const PRIORITY_DSTNAT: i32 = -100;

fn v6_network(prefix: [u8; 8]) -> std::net::Ipv6Addr {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&prefix);
    octets.into()
}

const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_SKUID: u32 = 10;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const PROTO_IPV4: u8 = 2;
const PROTO_IPV6: u8 = 10;

const SOCKET_TRANSPARENT: u32 = 0;

const REGISTER_VERDICT: u32 = 0;
const REGISTER_1: u32 = 1;
const EQUAL: u32 = 0;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;
const VERDICT_RETURN: i32 = -5;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const TCP: u8 = 6;
/// The loopback interface is the first of every namespace.
const LOOPBACK_INDEX: u32 = 1;

fn message(kind: u16, flags: u16, what: impl Into<String>) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, flags, what).head(&[FAMILY_INET, 0, 0, 0])
}

fn table(kind: u16, flags: u16) -> Message {
    message(kind, flags, format!("table inet {TABLE}")).text(1, TABLE)
}

fn transaction(messages: Vec<Message>) -> Result<(), NetlinkError> {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    let bracket = |kind| Message::new(kind, 0, "transaction").unacknowledged().head(&[0, 0, high, low]);
    let mut all = vec![bracket(BATCH_BEGIN)];
    all.extend(messages);
    all.push(bracket(BATCH_END));
    netlink::send(netlink::NETFILTER, &all)
}

impl Chain {
    fn name(self) -> &'static str {
        match self {
            Chain::Output => "output",
            Chain::Prerouting => "prerouting",
        }
    }

    fn message(self) -> Message {
        let hook = if self == Chain::Output { HOOK_OUTPUT } else { HOOK_PREROUTING };
        message(NEW_CHAIN, CREATE, format!("chain {}", self.name()))
            .text(1, TABLE)
            .text(3, self.name())
            .nest(4, |m| m.be32(1, hook).be32(2, PRIORITY_DSTNAT as u32))
            .text(7, "nat")
    }
}

impl Rule {
    fn message(&self) -> Message {
        message(NEW_RULE, CREATE | APPEND, format!("rule in {}: {self}", self.chain.name()))
            .text(1, TABLE)
            .text(2, self.chain.name())
            .nest(4, |m| self.verdict.encode(self.matches.iter().fold(m, |m, one| one.encode(m))))
    }
}

impl Match {
    fn encode(&self, message: Message) -> Message {
        match *self {
            Match::Mark(mark) => compare(meta(message, META_MARK), EQUAL, &mark.to_ne_bytes()),
            Match::User(uid) => compare(meta(message, META_SKUID), EQUAL, &uid.to_ne_bytes()),
            Match::ToLoopback => compare(meta(message, META_OIF), EQUAL, &LOOPBACK_INDEX.to_ne_bytes()),
            Match::FromLoopback => compare(meta(message, META_IIF), EQUAL, &LOOPBACK_INDEX.to_ne_bytes()),
            // Where the target address is in the two headers.
            Match::ToV4(prefix) => {
                let message = compare(meta(message, META_NFPROTO), EQUAL, &[PROTO_IPV4]);
                compare(payload(message, NETWORK_HEADER, 16, 2), EQUAL, &prefix)
            }
            Match::ToV6(prefix) => {
                let message = compare(meta(message, META_NFPROTO), EQUAL, &[PROTO_IPV6]);
                compare(payload(message, NETWORK_HEADER, 24, 8), EQUAL, &prefix)
            }
            // Where the source address is.
            Match::From(IpNet::V4(net)) => {
                let message = compare(meta(message, META_NFPROTO), EQUAL, &[PROTO_IPV4]);
                let masked = mask(payload(message, NETWORK_HEADER, 12, 4), &net.netmask().octets());
                compare(masked, EQUAL, &net.network().octets())
            }
            Match::From(IpNet::V6(net)) => {
                let message = compare(meta(message, META_NFPROTO), EQUAL, &[PROTO_IPV6]);
                let masked = mask(payload(message, NETWORK_HEADER, 8, 16), &net.netmask().octets());
                compare(masked, EQUAL, &net.network().octets())
            }
            Match::Tcp => compare(meta(message, META_L4PROTO), EQUAL, &[TCP]),
            Match::Ports(first, last) => {
                // Two bytes at offset 2 of the transport header: the target port.
                let port = payload(message, TRANSPORT_HEADER, 2, 2);
                if first == last {
                    return compare(port, EQUAL, &first.to_be_bytes());
                }
                compare(compare(port, AT_LEAST, &first.to_be_bytes()), AT_MOST, &last.to_be_bytes())
            }
            // Whatever it loads: where there is no socket the rule ends here.
            Match::Listening => expression(message, "socket", |m| m.be32(1, SOCKET_TRANSPARENT).be32(2, REGISTER_1)),
        }
    }
}

impl Verdict {
    fn encode(self, message: Message) -> Message {
        match self {
            Verdict::Return => expression(message, "immediate", |m| {
                let code = |m: Message| m.nest(2, |m| m.be32(1, VERDICT_RETURN as u32));
                m.be32(1, REGISTER_VERDICT).nest(2, code)
            }),
            Verdict::Redirect(port) => {
                let loaded = expression(message, "immediate", |m| {
                    m.be32(1, REGISTER_1).nest(2, |m| m.attr(1, &port.to_be_bytes()))
                });
                expression(loaded, "redir", |m| m.be32(1, REGISTER_1))
            }
        }
    }
}

fn expression(message: Message, name: &str, data: impl FnOnce(Message) -> Message) -> Message {
    message.nest(1, |m| m.text(1, name).nest(2, data))
}

fn payload(message: Message, header: u32, offset: u32, length: u32) -> Message {
    expression(message, "payload", |m| m.be32(1, REGISTER_1).be32(2, header).be32(3, offset).be32(4, length))
}

/// What was loaded, and these bits alone.
fn mask(message: Message, bits: &[u8]) -> Message {
    let none = vec![0; bits.len()];
    expression(message, "bitwise", |m| {
        let m = m.be32(1, REGISTER_1).be32(2, REGISTER_1).be32(3, bits.len() as u32);
        m.nest(4, |m| m.attr(1, bits)).nest(5, |m| m.attr(1, &none))
    })
}

fn meta(message: Message, key: u32) -> Message {
    expression(message, "meta", |m| m.be32(2, key).be32(1, REGISTER_1))
}

fn compare(message: Message, operator: u32, value: &[u8]) -> Message {
    expression(message, "cmp", |m| m.be32(1, REGISTER_1).be32(2, operator).nest(3, |m| m.attr(1, value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::socket::{getsockopt, sockopt};
    use std::io::ErrorKind;
    use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

    #[test]
    fn a_missing_privilege_and_a_missing_feature_of_the_kernel_are_named() {
        let of = |errno| {
            let source = std::io::Error::from_raw_os_error(errno);
            RedirectError::from(NetlinkError { what: "a rule".into(), source }).to_string()
        };
        for errno in [1, 13] {
            assert!(of(errno).contains("CAP_NET_ADMIN"), "{}", of(errno));
        }
        for errno in [2, 93, 95, 97] {
            assert!(of(errno).contains("nf_tables with NAT and redirect"), "{}", of(errno));
        }
    }

    fn redirect() -> Redirect {
        Redirect {
            outbound_port: 4140,
            inbound_port: 4143,
            exempt_uid: Some(2102),
            exempt_mark: Some(0x474d),
            skip_outbound: "5000-5010,6000".parse().unwrap(),
            skip_inbound: "9000".parse().unwrap(),
            skip_clients: vec!["172.17.0.0/16".parse().unwrap(), "fd88::/20".parse().unwrap()],
            own_ports: vec![4143, 4191],
            closed_port: Some(4140),
        }
    }

    #[test]
    fn exemptions_come_before_redirections() {
        let rules: Vec<String> = redirect().rules().iter().map(|r| format!("{}: {r}", r.chain.name())).collect();
        assert_eq!(
            rules,
            [
                "output: meta mark 0x0000474d return",
                "output: meta skuid 2102 return",
                "output: oif \"lo\" return",
                "output: meta l4proto tcp th dport 5000-5010 return",
                "output: meta l4proto tcp th dport 6000 return",
                "output: meta l4proto tcp redirect to :4140",
                "prerouting: iif \"lo\" return",
                "prerouting: meta l4proto tcp th dport 4143 return",
                "prerouting: meta l4proto tcp th dport 4191 return",
                "prerouting: meta l4proto tcp th dport 9000 return",
                "prerouting: ip saddr 172.17.0.0/16 return",
                "prerouting: ip6 saddr fd88::/20 return",
                "prerouting: meta l4proto tcp socket transparent { 0, 1 } redirect to :4143",
                "prerouting: meta l4proto tcp redirect to :4140",
            ]
        );
    }

    #[test]
    fn a_proxy_that_cannot_be_exempted_is_refused() {
        let all = Redirect { exempt_uid: None, exempt_mark: None, ..redirect() };
        assert!(matches!(all.apply(), Err(RedirectError::NoExemption)));
    }

    /// A thread in a network namespace of its own with one interface beside loopback, or None where that is forbidden.
    fn in_a_fresh_namespace(test: impl FnOnce() + Send + 'static) -> bool {
        let run = move || {
            // In the same user namespace only root may; a thread can't make a user namespace.
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                return false;
            }
            // RTM_NEWLINK = 16; loopback up, and a bridge with addresses.
            let up = |index: i32, name: &str, create: u16| {
                let mut head = vec![0; 4];
                head.extend(index.to_ne_bytes());
                head.extend([1u32.to_ne_bytes(), 1u32.to_ne_bytes()].concat());
                let link = Message::new(16, create, format!("link {name}")).head(&head).text(3, name);
                if create == 0 { link } else { link.nest(18, |m| m.text(1, "bridge")) }
            };
            netlink::send(netlink::ROUTE, &[up(1, "lo", 0)]).unwrap();
            if netlink::send(netlink::ROUTE, &[up(9, "out", CREATE)]).is_err() {
                return false;
            }
            // RTM_NEWADDR = 20, IFA_LOCAL = 2, IFA_ADDRESS = 1; IFA_F_NODAD = 2.
            let address = |family: u8, prefix: u8, ip: &[u8]| {
                let head = [&[family, prefix, 2, 0][..], &9u32.to_ne_bytes()].concat();
                Message::new(20, CREATE, "address").head(&head).attr(2, ip).attr(1, ip)
            };
            let v6 = "fd77::1".parse::<std::net::Ipv6Addr>().unwrap().octets();
            netlink::send(netlink::ROUTE, &[address(2, 8, &[10, 9, 0, 1]), address(10, 16, &v6)]).unwrap();
            test();
            true
        };
        std::thread::spawn(run).join().unwrap()
    }

    fn original(stream: &TcpStream) -> SocketAddr {
        if stream.local_addr().unwrap().ip().is_ipv4() {
            let found = getsockopt(stream, sockopt::OriginalDst).unwrap();
            let ip = std::net::Ipv4Addr::from(u32::from_be(found.sin_addr.s_addr));
            return SocketAddr::new(IpAddr::V4(ip), u16::from_be(found.sin_port));
        }
        let found = getsockopt(stream, sockopt::Ip6tOriginalDst).unwrap();
        SocketAddr::new(IpAddr::V6(found.sin6_addr.s6_addr.into()), u16::from_be(found.sin6_port))
    }

    #[test]
    fn a_redirected_connection_remembers_its_target() {
        let ran = in_a_fresh_namespace(|| {
            let rules = Redirect { exempt_uid: None, ..redirect() };
            rules.apply().unwrap();
            rules.apply().expect("twice is as once");
            let v4 = TcpListener::bind("127.0.0.1:4140").unwrap();
            let v6 = TcpListener::bind("[::1]:4140").unwrap();
            for (listener, target) in [(&v4, "10.1.2.3:80"), (&v6, "[fd77::2]:443")] {
                let target: SocketAddr = target.parse().unwrap();
                let _client = TcpStream::connect(target).unwrap();
                let (accepted, _) = listener.accept().unwrap();
                assert_eq!(original(&accepted), target);
            }

            // Skipped ports and marked sockets reach the target's address itself, where nobody listens.
            let own: SocketAddr = "10.9.0.1:5005".parse().unwrap();
            assert_eq!(TcpStream::connect(own).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            let marked = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            marked.set_mark(0x474d).unwrap();
            let blocked = marked.connect_timeout(
                &"10.1.2.3:80".parse::<SocketAddr>().unwrap().into(),
                std::time::Duration::from_millis(50),
            );
            assert!(blocked.is_err(), "a marked connection must not be redirected");

            remove().unwrap();
            remove().expect("nothing to remove is fine");
        });
        if !ran {
            assert!(std::env::var_os("CI").is_none(), "no network namespace can be made here, which takes root");
            // Not by a macro, whose words are only shown when a test fails.
            let words = b"SKIPPED: redirection by the kernel needs CAP_SYS_ADMIN and bridges\n";
            let _ = std::io::Write::write_all(&mut std::io::stderr(), words);
        }
    }
}
