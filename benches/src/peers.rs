//! The peers' configurations, and certificates for whoever does not get them from our control plane.
//!
//! What they do is the pair's minimum: mutual TLS 1.3 on a pooled hop, one thread, no access log, no metrics, no policy.

use crate::network::Pair;
use crate::server::{BULK, GRPC, HTTP, HTTP2};
use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// In the server's certificate.
pub(crate) const SERVER_NAME: &str = "server.bench";
/// In the client's certificate.
pub(crate) const CLIENT_NAME: &str = "client.bench";

/// Added to a port of the application: where the outbound proxy listens, where the inbound proxy does, and the port
/// that the hop is addressed to before it is redirected.
pub(crate) const OUTBOUND: u16 = 10_000;
/// See [`OUTBOUND`].
pub(crate) const INBOUND: u16 = 11_000;
/// See [`OUTBOUND`].
pub(crate) const HOP: u16 = 12_000;

/// Pairs of ports: what arrives at the first goes to the second.
type Ports = Vec<(u16, u16)>;

/// Ports that are taken over on each side: from, to.
pub(crate) fn redirections() -> (Ports, Ports) {
    let ports = [HTTP, HTTP2, GRPC, BULK];
    (ports.map(|p| (p, p + OUTBOUND)).to_vec(), ports.map(|p| (p + HOP, p + INBOUND)).to_vec())
}

/// A folder with `ca.pem`, `client.pem`, `server.pem` (certificate and key).
pub(crate) struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes an authority and two certificates, ECDSA P-256 as the mesh's.
    pub(crate) fn make(folder: &Path) -> Result<()> {
        let mut params = CertificateParams::new(vec![])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, "bench authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(folder.join("ca.pem"), authority.pem())?;
        for name in [CLIENT_NAME, SERVER_NAME] {
            let mut params = CertificateParams::new(vec![name.to_string()])?;
            // OpenSSL takes a certificate whose subject is its issuer's for a self-signed one.
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &authority)?;
            let side = name.trim_end_matches(".bench");
            fs::write(folder.join(format!("{side}.pem")), certificate.pem() + &key.serialize_pem())?;
        }
        Ok(())
    }

    /// Takes those of a folder.
    pub(crate) fn read(folder: &Path) -> Result<Certificates> {
        Ok(Certificates { folder: folder.into() })
    }

    fn roots(&self) -> Result<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.folder.join("ca.pem"))?)?;
        Ok(Arc::new(roots))
    }

    fn own(&self, side: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let file = self.folder.join(format!("{side}.pem"));
        Ok((vec![CertificateDer::from_pem_file(&file)?], PrivateKeyDer::from_pem_file(&file)?))
    }

    /// For the outbound relay.
    pub(crate) fn client(&self) -> Result<ClientConfig> {
        let (chain, key) = self.own("client")?;
        let config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13]);
        Ok(config.with_root_certificates(self.roots()?).with_client_auth_cert(chain, key)?)
    }

    /// For the inbound relay.
    pub(crate) fn server(&self) -> Result<ServerConfig> {
        let (chain, key) = self.own("server")?;
        let config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13]);
        let verifier = WebPkiClientVerifier::builder(self.roots()?).build()?;
        Ok(config.with_client_cert_verifier(verifier).with_single_cert(chain, key)?)
    }
}

/// Writes both configurations of HAProxy; gives their paths.
pub(crate) fn haproxy(pair: &Pair, folder: &Path) -> Result<[PathBuf; 2]> {
    let dir = folder.display();
    let hop = pair.server_ip();
    let tls = |side: &str| format!("ssl crt {dir}/{side}.pem ca-file {dir}/ca.pem verify required ssl-min-ver TLSv1.3");
    let head = "global\n nbthread 1\n maxconn 12000\n no strict-limits\ndefaults\n timeout connect 5s\n timeout client 300s\n timeout server 300s\n \
         mode http\n http-reuse always\n";
    let (client, server) = (tls("client"), tls("server"));
    let mut outbound = head.to_string();
    let mut inbound = head.to_string();
    // Name, port, HTTP/2, mode.
    let kinds = [
        ("http", HTTP, false, "http"),
        ("http2", HTTP2, true, "http"),
        ("grpc", GRPC, true, "http"),
        ("bulk", BULK, false, "tcp"),
    ];
    for (name, port, http2, mode) in kinds {
        let (proto, alpn) = if http2 { ("proto h2", "alpn h2") } else { ("", "") };
        outbound += &format!(
            "frontend {name}\n mode {mode}\n bind 127.0.0.1:{} {proto}\n default_backend {name}\n\
             backend {name}\n mode {mode}\n server s {hop}:{} {client} verifyhost {SERVER_NAME} sni str({SERVER_NAME}) {alpn}\n",
            port + OUTBOUND,
            port + HOP,
        );
        inbound += &format!(
            "frontend {name}\n mode {mode}\n bind 0.0.0.0:{} {server} {alpn}\n default_backend {name}\n\
             backend {name}\n mode {mode}\n server s 127.0.0.1:{port} {proto}\n",
            port + INBOUND,
        );
    }
    write(folder, "haproxy", [outbound, inbound])
}

/// Writes both configurations of nginx; gives their paths. It has no HTTP/2 towards servers but gRPC's.
pub(crate) fn nginx(pair: &Pair, folder: &Path) -> Result<[PathBuf; 2]> {
    let dir = folder.display();
    let hop = pair.server_ip();
    let keep = "keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 300s;";
    let head = |side: &str| {
        let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {dir}/nginx-{side}-{kind};"))
            .concat();
        let module = stream_module().map(|path| format!("load_module {path};")).unwrap_or_default();
        format!(
            "{module} daemon off; user root; worker_processes 1; pid {dir}/nginx-{side}.pid; \
             error_log {dir}/nginx-{side}.log;\nevents {{ worker_connections 16384; }}\n\
             http {{ access_log off; {temp} keepalive_timeout 300s; keepalive_requests 1000000000; \
             http2_max_concurrent_streams 256; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
             proxy_max_temp_file_size 0;\n"
        )
    };
    let to = |kind: &str| {
        format!(
            "{kind}_ssl_certificate {dir}/client.pem; {kind}_ssl_certificate_key {dir}/client.pem; \
             {kind}_ssl_trusted_certificate {dir}/ca.pem; {kind}_ssl_verify on; {kind}_ssl_name {SERVER_NAME}; \
             {kind}_ssl_server_name on; {kind}_ssl_protocols TLSv1.3;"
        )
    };
    let from = format!(
        "ssl_certificate {dir}/server.pem; ssl_certificate_key {dir}/server.pem; ssl_client_certificate {dir}/ca.pem; \
         ssl_verify_client on; ssl_protocols TLSv1.3;"
    );
    let upstream = |name: &str, address: String| format!("upstream {name} {{ server {address}; {keep} }}\n");
    let (out, inn) = (|port: u16| port + OUTBOUND, |port: u16| port + INBOUND);

    let mut outbound = head("client");
    outbound += &upstream("http", format!("{hop}:{}", HTTP + HOP));
    outbound += &upstream("grpc", format!("{hop}:{}", GRPC + HOP));
    let pass = to("proxy");
    outbound +=
        &format!("server {{ listen 127.0.0.1:{}; location / {{ proxy_pass https://http; {pass} }} }}\n", out(HTTP));
    outbound += &format!(
        "server {{ listen 127.0.0.1:{} http2; location / {{ proxy_pass https://http; {pass} }} }}\n",
        out(HTTP2)
    );
    outbound += &format!(
        "server {{ listen 127.0.0.1:{} http2; location / {{ grpc_pass grpcs://grpc; {} }} }} }}\n",
        out(GRPC),
        to("grpc")
    );
    outbound += &format!(
        "stream {{ server {{ listen 127.0.0.1:{}; proxy_pass {hop}:{}; proxy_ssl on; {pass} }} }}\n",
        out(BULK),
        BULK + HOP
    );

    let mut inbound = head("server");
    inbound += &upstream("http", format!("127.0.0.1:{HTTP}"));
    inbound += &upstream("grpc", format!("127.0.0.1:{GRPC}"));
    inbound += &format!("server {{ listen {} ssl; {from} location / {{ proxy_pass http://http; }} }}\n", inn(HTTP));
    inbound +=
        &format!("server {{ listen {} ssl http2; {from} location / {{ grpc_pass grpc://grpc; }} }} }}\n", inn(GRPC));
    inbound += &format!("stream {{ server {{ listen {} ssl; {from} proxy_pass 127.0.0.1:{BULK}; }} }}\n", inn(BULK));
    let without = |text: String| match stream_module() {
        Some(_) => text,
        None => text.split("stream {").next().unwrap_or_default().to_string(),
    };
    write(folder, "nginx", [without(outbound), without(inbound)])
}

/// Debian's nginx moves plain bytes only with this.
pub(crate) fn stream_module() -> Option<&'static str> {
    let paths = ["/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/lib64/nginx/modules/ngx_stream_module.so"];
    paths.into_iter().find(|path| Path::new(path).exists())
}

fn write(folder: &Path, name: &str, texts: [String; 2]) -> Result<[PathBuf; 2]> {
    let paths = ["client", "server"].map(|side| folder.join(format!("{name}-{side}.conf")));
    for (path, text) in paths.iter().zip(texts) {
        fs::write(path, text).context(path.display().to_string())?;
    }
    Ok(paths)
}
