//! Against rustls' own streams and against ourselves, over real sockets; and what a hostile peer gets.

use super::*;
use bytes::BytesMut;
use gossamer_api::process::tls::{ClientAuth, Credentials};
use rustls::HandshakeKind;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const NAME: &str = "web.demo.serviceaccount.identity.gossamer.cluster.local";

struct Mesh {
    credentials: Arc<Credentials>,
}

impl Mesh {
    fn new() -> Mesh {
        let folder = tempfile::tempdir().unwrap();
        let tokens = gossamer_identity::token::TokenCheck::JoinTokens(gossamer_identity::token::JoinTokens::new());
        let config = gossamer_identity::Config::new(folder.path().join("state"), tokens);
        let stop = gossamer_api::process::stop::Stop::new();
        let authority = gossamer_identity::Authority::start(&config, &stop).unwrap();
        let credentials = Arc::new(authority.service.self_issue(&NAME.parse().unwrap()).unwrap());
        assert!(!credentials.is_expired(SystemTime::now()));
        Mesh { credentials }
    }

    async fn accept(&self, io: TcpStream) -> io::Result<Tls> {
        let config = self.credentials.server_config(&[b"test"], ClientAuth::Required);
        let (tls, known) = accept(config, io, BytesMut::new(), |s| s.peer_certificates().is_some()).await?;
        assert!(known);
        Ok(tls)
    }

    async fn connect(&self, io: TcpStream) -> io::Result<(Tls, Option<HandshakeKind>)> {
        connect(self.credentials.client_config(&[b"test"]), name(), io, |s| s.handshake_kind()).await
    }

    /// Both ends ours.
    async fn pair(&self) -> (Tls, Tls) {
        let (near, far) = sockets().await;
        let (client, server) = tokio::join!(self.connect(near), self.accept(far));
        (client.unwrap().0, server.unwrap())
    }
}

fn name() -> ServerName<'static> {
    ServerName::try_from(NAME).unwrap()
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Writes in sizes that are never the same, whole and in pieces.
async fn write(io: &mut (impl AsyncWrite + Unpin), mut left: &[u8]) {
    for turn in 1usize.. {
        if left.is_empty() {
            break;
        }
        let some = left.len().min(turn * turn * 7919 % 300_000 + 1);
        let count = if turn % 3 == 0 {
            let (a, b) = left[..some].split_at(some / 3);
            io.write_vectored(&[IoSlice::new(a), IoSlice::new(&[]), IoSlice::new(b)]).await.unwrap()
        } else {
            io.write(&left[..some]).await.unwrap()
        };
        left = &left[count..];
    }
    io.shutdown().await.unwrap();
}

/// Both ways at once, to the end.
async fn exchange<A, B>(near: A, far: B)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let sent = bytes(3_000_000);
    let (mut near_read, mut near_write) = tokio::io::split(near);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    let (mut got_near, mut got_far) = (Vec::new(), Vec::new());
    let (_, _, a, b) = tokio::join!(
        write(&mut near_write, &sent),
        write(&mut far_write, &sent[1..]),
        near_read.read_to_end(&mut got_near),
        far_read.read_to_end(&mut got_far),
    );
    a.unwrap();
    b.unwrap();
    assert!(got_far == sent && got_near == sent[1..], "{} and {} bytes", got_far.len(), got_near.len());
}

#[tokio::test]
async fn every_byte_arrives_and_keys_are_replaced_on_the_way() {
    let mesh = Mesh::new();
    let (mut client, mut server) = mesh.pair().await;
    (client.rekey_after, server.rekey_after) = (5, 7);
    exchange(client, server).await;
}

#[tokio::test]
async fn rustls_understands_us_and_we_it() {
    let mesh = Mesh::new();
    let (near, far) = sockets().await;
    let acceptor = tokio_rustls::TlsAcceptor::from(mesh.credentials.server_config(&[b"test"], ClientAuth::Required));
    let (client, server) = tokio::join!(mesh.connect(near), acceptor.accept(far));
    let (mut client, mut server) = (client.unwrap().0, server.unwrap());
    client.rekey_after = 11;
    server.get_mut().1.refresh_traffic_keys().unwrap();
    exchange(client, server).await;

    let (near, far) = sockets().await;
    let connector = tokio_rustls::TlsConnector::from(mesh.credentials.client_config(&[b"test"]));
    let (client, server) = tokio::join!(connector.connect(name(), near), mesh.accept(far));
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    server.rekey_after = 11;
    client.get_mut().1.refresh_traffic_keys().unwrap();
    exchange(client, server).await;
}

#[tokio::test]
async fn a_peer_that_asks_for_new_keys_gets_them() {
    let (mut client, mut server) = Mesh::new().pair().await;
    for turn in 0..3u8 {
        let mut record = [0; 64];
        let count = client.outgoing.seal(Content::Handshake, &[24, 0, 0, 1, 1], &mut record).unwrap();
        client.io.write_all(&record[..count]).await.unwrap();
        let Session::Client(session) = &mut client.session else { unreachable!() };
        client.outgoing = Key::new(session.update_tx_secret().unwrap()).unwrap();
        client.write_all(&[turn]).await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), turn);
        assert!(server.update_owed);
        server.write_all(&[turn]).await.unwrap();
        assert!(!server.update_owed);
        assert_eq!(server.outgoing.used(), 1, "a new key");
        assert_eq!(client.read_u8().await.unwrap(), turn);
    }
}

#[tokio::test]
async fn the_second_handshake_is_a_short_one() {
    let mesh = Mesh::new();
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        let (near, far) = sockets().await;
        let (client, server) = tokio::join!(mesh.connect(near), mesh.accept(far));
        let ((mut client, was), mut server) = (client.unwrap(), server.unwrap());
        assert_eq!(was, Some(kind));
        // The ticket comes before the first byte.
        server.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
    }
}

#[tokio::test]
async fn half_a_close_leaves_the_other_half_and_a_cut_is_no_end() {
    let (mut client, mut server) = Mesh::new().pair().await;
    client.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0; 9]).await.unwrap(), 0);
    server.write_all(b"still here").await.unwrap();
    let mut got = [0; 10];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still here");
    assert_eq!(client.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    drop(server);
    for _ in 0..2 {
        assert_eq!(client.read(&mut got).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn what_came_with_the_end_of_the_handshake_is_not_lost() {
    let mesh = Mesh::new();
    let ((near, mut middle_near), (mut middle_far, far)) = (sockets().await, sockets().await);
    let sent = bytes(40_000);
    let client = async {
        let (mut client, _) = mesh.connect(near).await.unwrap();
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        client
    };
    let middle = async {
        let mut hello = vec![0; 20_000];
        let count = middle_near.read(&mut hello).await.unwrap();
        middle_far.write_all(&hello[..count]).await.unwrap();
        let count = middle_far.read(&mut hello).await.unwrap();
        middle_near.write_all(&hello[..count]).await.unwrap();
        // All that the client has to say, at once.
        let mut rest = Vec::new();
        middle_near.read_to_end(&mut rest).await.unwrap();
        middle_far.write_all(&rest).await.unwrap();
        (middle_near, middle_far)
    };
    let server = async {
        let mut server = mesh.accept(far).await.unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        got
    };
    let (_client, _middle, got) = tokio::join!(client, middle, server);
    assert!(got == sent, "{} bytes", got.len());
}

#[tokio::test]
async fn a_changed_record_ends_everything_after_what_was_good() {
    let (mut client, mut server) = Mesh::new().pair().await;
    client.write_all(b"good").await.unwrap();
    let mut record = [0; 64];
    let count = client.outgoing.seal(Content::Data, b"bad", &mut record).unwrap();
    record[7] ^= 1;
    client.io.write_all(&record[..count]).await.unwrap();
    let mut got = [0; 4];
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"good");
    for _ in 0..2 {
        assert_eq!(server.read(&mut got).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(server.write(&got).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
    // The client learns it from the server's alert.
    let error = client.read(&mut got).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("alert 20")), (io::ErrorKind::ConnectionAborted, true));
}

#[tokio::test]
async fn a_message_without_a_place_is_refused() {
    let mesh = Mesh::new();
    let cases: [(Content, &[u8]); 9] = [
        (Content::Handshake, &[4, 0, 0, 1, 0]),
        (Content::Handshake, &[24, 0, 0, 1, 2]),
        (Content::Handshake, &[24, 0, 0, 2, 0, 0]),
        (Content::Handshake, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0]),
        (Content::Handshake, &[13, 0, 0, 0]),
        (Content::Handshake, &[]),
        (Content::Handshake, &[4, 255, 255, 255]),
        (Content::Alert, &[1]),
        (Content::Alert, &[1, 0, 0]),
    ];
    for (content, message) in cases {
        let (mut client, mut server) = mesh.pair().await;
        let mut record = [0; 64];
        let count = client.outgoing.seal(content, message, &mut record).unwrap();
        client.io.write_all(&record[..count]).await.unwrap();
        let error = server.read(&mut [0; 9]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{content:?} {message:?}: {error}");
    }
    // Half a message, then something else.
    let (mut client, mut server) = mesh.pair().await;
    let mut record = [0; 64];
    let count = client.outgoing.seal(Content::Handshake, &[24, 0], &mut record).unwrap();
    client.io.write_all(&record[..count]).await.unwrap();
    client.write_all(b"data").await.unwrap();
    assert_eq!(server.read(&mut [0; 9]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

/// What a peer that holds the keys says in one record, or before it.
#[derive(Clone, Debug)]
enum Said {
    Data(Vec<u8>),
    NewKey {
        asks: bool,
    },
    /// A message of that kind whose length is off by so much, cut in two where it says.
    Message {
        kind: u8,
        body: Vec<u8>,
        off: i8,
        cut: u8,
    },
    Handshake(Vec<u8>),
    Alert(Vec<u8>),
    /// Sealed well, then changed in one bit.
    Spoiled {
        data: Vec<u8>,
        at: u8,
    },
}

fn said() -> impl proptest::strategy::Strategy<Value = Said> {
    use proptest::prelude::*;
    let some = |most| proptest::collection::vec(any::<u8>(), 0..most);
    let kind = prop_oneof![Just(4u8), Just(8), Just(13), Just(24), any::<u8>()];
    prop_oneof![
        6 => some(300).prop_map(Said::Data),
        3 => any::<bool>().prop_map(|asks| Said::NewKey { asks }),
        2 => (kind, some(60), prop_oneof![3 => Just(0i8), 1 => -1..=1i8], any::<u8>())
            .prop_map(|(kind, body, off, cut)| Said::Message { kind, body, off, cut }),
        1 => some(40).prop_map(Said::Handshake),
        1 => prop_oneof![some(4), Just(vec![1, 0]), Just(vec![1, 90]), any::<u8>().prop_map(|number| vec![2, number])]
            .prop_map(Said::Alert),
        1 => (some(40), any::<u8>()).prop_map(|(data, at)| Said::Spoiled { data, at }),
    ]
}

/// The records of `said`, and whether a peer could rightly have said that.
fn records_of(speaker: &mut Tls, said: &Said) -> (Vec<u8>, bool) {
    let mut records = vec![0; 2 * records::FULL];
    let mut length = 0;
    let mut put = |speaker: &mut Tls, content, plain: &[u8]| {
        length += speaker.outgoing.seal(content, plain, &mut records[length..]).unwrap();
    };
    let right = match said {
        Said::Data(data) => {
            put(speaker, Content::Data, data);
            true
        }
        Said::NewKey { asks } => {
            put(speaker, Content::Handshake, &[24, 0, 0, 1, u8::from(*asks)]);
            let next = match &mut speaker.session {
                Session::Client(session) => session.update_tx_secret(),
                Session::Server(session) => session.update_tx_secret(),
            };
            speaker.outgoing = Key::new(next.unwrap()).unwrap();
            true
        }
        Said::Message { kind, body, off, cut } => {
            let length = body.len().saturating_add_signed((*off).into()) as u8;
            let message = [&[*kind, 0, 0, length], &body[..]].concat();
            let (first, second) = message.split_at(usize::from(*cut) % message.len());
            put(speaker, Content::Handshake, first);
            put(speaker, Content::Handshake, second);
            false
        }
        Said::Handshake(message) => {
            put(speaker, Content::Handshake, message);
            false
        }
        Said::Alert(alert) => {
            put(speaker, Content::Alert, alert);
            false
        }
        Said::Spoiled { data, .. } => {
            put(speaker, Content::Data, data);
            false
        }
    };
    records.truncate(length);
    if let Said::Spoiled { at, .. } = said {
        let at = usize::from(*at) % length;
        records[at] ^= 1;
    }
    (records, right)
}

/// Sends all of it and the socket's end; then what the other end reads is a beginning of what was sent before the first
/// thing that nobody may say, and all of it if there was none.
async fn hears(mut speaker: Tls, mut hearer: Tls, all: &[Said]) -> Result<(), String> {
    let (mut sent, mut sound) = (Vec::<u8>::new(), true);
    let mut wire = Vec::new();
    for said in all {
        let (records, right) = records_of(&mut speaker, said);
        wire.extend(records);
        sound &= right;
        if let Said::Data(data) = said {
            sent.extend(data);
        }
    }
    speaker.io.write_all(&wire).await.unwrap();
    tokio::io::AsyncWriteExt::shutdown(&mut speaker.io).await.unwrap();
    let mut got = Vec::new();
    let end = loop {
        let mut some = [0; 97];
        match hearer.read(&mut some).await {
            Ok(0) => break Ok(()),
            Ok(count) => got.extend(&some[..count]),
            Err(error) => break Err(error),
        }
        // A key that is owed is paid on the way.
        let _ = hearer.write(b"x").await;
    };
    if !sent.starts_with(&got) {
        return Err(format!("{got:?} was not sent"));
    }
    match &end {
        Err(error) if sound && (error.kind() != io::ErrorKind::UnexpectedEof || got != sent) => {
            Err(format!("{} of {} bytes, then {error}", got.len(), sent.len()))
        }
        Ok(()) if sound => Err("an end that nobody told".into()),
        Ok(()) if !all.iter().any(|said| matches!(said, Said::Alert(alert) if matches!(alert[..], [_, 0]))) => {
            Err("an end that nobody told".into())
        }
        // Once refused, always refused.
        Err(error) if hearer.read(&mut [0; 9]).await.map_err(|again| again.kind()) != Err(error.kind()) => {
            Err("what failed goes on".into())
        }
        _ => Ok(()),
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(128))]

    /// Tickets, keys, alerts and data in any order, right or nearly, sealed with the right keys, to both roles.
    #[test]
    fn whatever_a_peer_says_ends_in_what_was_sent_or_an_error(all in proptest::collection::vec(said(), 0..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mesh = Mesh::new();
            for server_speaks in [false, true] {
                let (client, server) = mesh.pair().await;
                let (speaker, hearer) = if server_speaks { (server, client) } else { (client, server) };
                let heard = tokio::time::timeout(std::time::Duration::from_secs(20), hears(speaker, hearer, &all)).await;
                let heard = heard.unwrap_or_else(|_| Err("no end".into()));
                proptest::prop_assert!(heard.is_ok(), "server speaks: {}: {:?}", server_speaks, heard);
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn new_keys_without_end_are_refused() {
    let (mut client, mut server) = Mesh::new().pair().await;
    for _ in 0..=KEY_UPDATES {
        let mut record = [0; 64];
        let count = client.outgoing.seal(Content::Handshake, &KEY_UPDATE, &mut record).unwrap();
        client.io.write_all(&record[..count]).await.unwrap();
        let Session::Client(session) = &mut client.session else { unreachable!() };
        client.outgoing = Key::new(session.update_tx_secret().unwrap()).unwrap();
    }
    assert_eq!(server.read(&mut [0; 9]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn records_come_byte_by_byte_too() {
    let (mut client, mut server) = Mesh::new().pair().await;
    let mut records = vec![0; 3 * records::FULL];
    let mut length = 0;
    for plain in [&bytes(16_384)[..], b"", b"end"] {
        length += client.outgoing.seal(Content::Data, plain, &mut records[length..]).unwrap();
    }
    let trickle = async {
        for piece in records[..length].chunks(1_111) {
            client.io.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let mut got = vec![0; 16_387];
    let (_, read) = tokio::join!(trickle, server.read_exact(&mut got));
    read.unwrap();
    assert!(got[..16_384] == bytes(16_384) && got[16_384..] == *b"end");
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffer() {
    let (mut client, mut server) = Mesh::new().pair().await;
    client.write_all(&bytes(100_000)).await.unwrap();
    client.flush().await.unwrap();
    server.read_exact(&mut vec![0; 100_000]).await.unwrap();
    server.write_all(b"x").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'x');
    for tls in [&mut client, &mut server] {
        assert!(futures_util::FutureExt::now_or_never(tls.read_u8()).is_none());
        assert_eq!((tls.input.capacity(), tls.output.capacity(), tls.message.capacity()), (0, 0, 0));
    }
    assert!(size_of::<Tls>() <= 2_048, "{}", size_of::<Tls>());
}

#[tokio::test]
async fn a_stranger_is_refused_and_told_so() {
    let (ours, theirs) = (Mesh::new(), Mesh::new());
    let (near, far) = sockets().await;
    let (client, server) = tokio::join!(theirs.connect(near), ours.accept(far));
    let error = client.unwrap_err();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    assert!(matches!(tls, Some(rustls::Error::InvalidCertificate(_))), "{error}");
    let error = server.unwrap_err();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    assert!(matches!(tls, Some(rustls::Error::AlertReceived(_))), "{error}");
}
