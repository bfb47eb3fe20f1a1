//! The authority's files: made on first start, read again when they change, rotated while everything runs.
//!
//! `root.pem` (certificate and key; may be taken away once `issuer.pem` exists), `issuer.pem` (certificate, those above
//! it, key), `anchors.pem` (every root that is trusted). A folder with `tls.crt`, `tls.key`, `ca.crt` (a mounted
//! Kubernetes secret) works as well and is never written to.
//!
//! **Invariant:** nothing that exists is overwritten on start; each file is replaced whole or not at all, and is its
//! owner's alone from its first byte.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail, ensure};
use gossamer_api::defaults;
use gossamer_api::process::tls::Anchors;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::issuer::{self, Issuer};

/// A folder of authority files.
#[derive(Clone, Debug)]
pub struct State {
    dir: PathBuf,
    trust_domain: String,
    /// Where the bundle is instead of `anchors.pem`: a file, or a folder of `*.pem` and `*.crt`.
    anchors: Option<PathBuf>,
}

/// What was read; equal when no file has changed.
#[derive(Clone, PartialEq, Eq)]
pub struct Files {
    issuer: String,
    key: String,
    anchors: String,
}

impl State {
    /// Opens the folder; makes it, a root and an issuer where there is nothing yet.
    pub fn open(dir: &Path, trust_domain: &str, anchors: Option<PathBuf>) -> anyhow::Result<Self> {
        let state = State { dir: dir.to_owned(), trust_domain: trust_domain.to_owned(), anchors };
        if !state.is_secret() {
            state.create_missing().with_context(|| format!("state folder {}", dir.display()))?;
        }
        Ok(state)
    }

    /// Reads the files, without judging them.
    pub fn read(&self) -> anyhow::Result<Files> {
        let (issuer, key, anchors) = match self.is_secret() {
            true => (read(&self.path("tls.crt"))?, read(&self.path("tls.key"))?, self.path("ca.crt")),
            false => {
                let both = read(&self.path(ISSUER))?;
                let key = issuer::private_key_pem(&both).context("issuer.pem has no private key")?;
                (both, key, self.path(ANCHORS))
            }
        };
        let anchors = read_bundle(self.anchors.as_deref().unwrap_or(&anchors))?;
        Ok(Files { issuer, key, anchors })
    }

    /// Reads and judges them.
    pub fn load(&self) -> anyhow::Result<Issuer> {
        self.read()?.issuer()
    }

    /// First step of a rotation: makes a new root, which is trusted beside those that are. The next issuer will be
    /// signed by it. Go on with [`State::reissue`] once every proxy has the bundle (they watch it: seconds).
    pub fn add_root(&self) -> anyhow::Result<()> {
        let _lock = self.lock()?;
        ensure!(self.anchors.is_none() && !self.is_secret(), "the trust anchors are managed elsewhere");
        let root = issuer::new_root(&self.trust_domain, SystemTime::now())?;
        // Trusted first: an issuer must never be signed by a root that is not.
        let bundle = format!("{}{}", read(&self.path(ANCHORS))?, root.certificate);
        replace(&self.path(ANCHORS), Anchors::from_pem(&bundle)?.pem())?;
        replace(&self.path(ROOT), &root.pem())
    }

    /// Second step: makes a new issuer under the newest root. Go on with [`State::drop_old_roots`] once every leaf of
    /// the old issuer has ended (a day).
    pub fn reissue(&self) -> anyhow::Result<()> {
        let _lock = self.lock()?;
        ensure!(!self.is_secret(), "the issuer is managed elsewhere");
        let root = read(&self.path(ROOT)).context("a new issuer needs the root's key")?;
        let anchors = Anchors::from_pem(&read_bundle(self.anchors.as_deref().unwrap_or(&self.path(ANCHORS)))?)?;
        let certificate = CertificateDer::from_pem_slice(root.as_bytes()).context("root.pem")?;
        ensure!(anchors.certificates().contains(&certificate), "root.pem is not among the trust anchors");
        let issuer = issuer::new_issuer(&root, &self.trust_domain, SystemTime::now())?;
        Issuer::new(&issuer.certificate, &issuer.key, anchors, SystemTime::now())?;
        replace(&self.path(ISSUER), &issuer.pem())
    }

    /// Last step: trusts only the roots that the present issuer leads to.
    pub fn drop_old_roots(&self) -> anyhow::Result<()> {
        let _lock = self.lock()?;
        ensure!(self.anchors.is_none() && !self.is_secret(), "the trust anchors are managed elsewhere");
        let files = self.read()?;
        let anchors = Anchors::from_pem(&files.anchors)?;
        let needed: Vec<_> = anchors
            .certificates()
            .iter()
            .filter(|root| {
                let alone = Anchors::from_der(vec![(*root).clone()]);
                alone.is_ok_and(|alone| Issuer::new(&files.issuer, &files.key, alone, SystemTime::now()).is_ok())
            })
            .cloned()
            .collect();
        ensure!(!needed.is_empty(), "no trust anchor would be left: the issuer leads to none");
        replace(&self.path(ANCHORS), Anchors::from_der(needed)?.pem())
    }

    /// Makes a new issuer when the present one has used up [`defaults::CERTIFICATE_REFRESH_RATIO`] of its life and the
    /// root's key is here. True if it did.
    pub fn renew_issuer(&self, present: &Issuer, now: SystemTime) -> anyhow::Result<bool> {
        let left = present.not_after().duration_since(now).unwrap_or_default();
        let due = left < defaults::ISSUER_LIFETIME.mul_f64(1.0 - defaults::CERTIFICATE_REFRESH_RATIO);
        if !due || self.is_secret() || !self.path(ROOT).exists() {
            return Ok(false);
        }
        // A root near its own end gives no longer life; then only a new root helps, which is a person's decision.
        let root = CertificateDer::from_pem_slice(read(&self.path(ROOT))?.as_bytes()).context("root.pem")?;
        if gossamer_api::process::tls::not_after_of(&root)? <= present.not_after() {
            return Ok(false);
        }
        self.reissue().map(|()| true)
    }

    fn create_missing(&self) -> anyhow::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        // Two processes that start together make one authority.
        let _lock = self.lock()?;
        let has = |name| self.path(name).exists();
        let now = SystemTime::now();
        if has(ISSUER) && (has(ANCHORS) || self.anchors.is_some()) {
            return Ok(());
        }
        if !has(ROOT) {
            if has(ISSUER) || has(ANCHORS) || self.anchors.is_some() {
                bail!("issuer.pem or the trust anchors are missing, and there is no root.pem to make them with");
            }
            create(&self.path(ROOT), &issuer::new_root(&self.trust_domain, now)?.pem())?;
        }
        let root = read(&self.path(ROOT))?;
        if !has(ANCHORS) && self.anchors.is_none() {
            let certificate = CertificateDer::from_pem_slice(root.as_bytes()).context("root.pem")?;
            create(&self.path(ANCHORS), Anchors::from_der(vec![certificate])?.pem())?;
        }
        if !has(ISSUER) {
            create(&self.path(ISSUER), &issuer::new_issuer(&root, &self.trust_domain, now)?.pem())?;
        }
        tracing::info!(folder = %self.dir.display(), "made a new certificate authority");
        Ok(())
    }

    fn is_secret(&self) -> bool {
        self.path("tls.crt").exists()
    }

    fn lock(&self) -> anyhow::Result<File> {
        let path = self.path(".lock");
        let file = owner_only().create(true).truncate(false).open(&path).with_context(|| path.display().to_string())?;
        file.lock()?;
        Ok(file)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Files {
    /// The issuer that they make.
    pub fn issuer(&self) -> anyhow::Result<Issuer> {
        let anchors = Anchors::from_pem(&self.anchors)?;
        Ok(Issuer::new(&self.issuer, &self.key, anchors, SystemTime::now())?)
    }
}

fn owner_only() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

/// Writes a file that does not exist yet.
fn create(path: &Path, text: &str) -> anyhow::Result<()> {
    let temporary = write_temporary(path, text)?;
    // Unlike a rename, a link never replaces.
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    linked.with_context(|| path.display().to_string())?;
    sync_folder(path)
}

/// Replaces a file as a whole.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::rename(write_temporary(path, text)?, path).with_context(|| path.display().to_string())?;
    sync_folder(path)
}

fn write_temporary(path: &Path, text: &str) -> anyhow::Result<PathBuf> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    // What is left of a crash may have any mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut file = owner_only().create_new(true).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(temporary)
}

fn sync_folder(path: &Path) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    let named = || path.display().to_string();
    let mut text = String::new();
    File::open(path).with_context(named)?.take(MAX_FILE_BYTES).read_to_string(&mut text).with_context(named)?;
    Ok(text)
}

/// A bundle: a file, or a folder's `*.pem` and `*.crt` in the order of their names.
pub(crate) fn read_bundle(path: &Path) -> anyhow::Result<String> {
    if !path.is_dir() {
        return read(path);
    }
    let mut files: Vec<PathBuf> = fs::read_dir(path)?.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "pem" || ending == "crt"));
    files.sort();
    let mut bundle = String::new();
    for file in files {
        bundle.push_str(&read(&file)?);
        bundle.push('\n');
    }
    Ok(bundle)
}

const ROOT: &str = "root.pem";
const ISSUER: &str = "issuer.pem";
const ANCHORS: &str = "anchors.pem";
/// Larger ones end in the middle and fail to parse.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn open(dir: &Path) -> anyhow::Result<State> {
        State::open(dir, "cluster.local", None)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_first_start_makes_an_authority_that_later_starts_keep() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("a/b");
        let state = open(&dir).unwrap();
        state.load().unwrap();
        assert_eq!(mode(&dir), 0o700);
        for file in [ROOT, ISSUER, ANCHORS, ".lock"] {
            assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 4, "nothing temporary is left");
        let before = state.read().unwrap();
        assert!(open(&dir).unwrap().read().unwrap() == before);
        // The root may live elsewhere.
        fs::remove_file(dir.join(ROOT)).unwrap();
        assert!(open(&dir).unwrap().read().unwrap() == before);
        assert!(state.reissue().unwrap_err().to_string().contains("root's key"));
        // What is lost is not silently made anew: nobody would trust it.
        fs::remove_file(dir.join(ISSUER)).unwrap();
        assert!(format!("{:#}", open(&dir).unwrap_err()).contains("no root.pem"));
    }

    #[test]
    fn an_interrupted_first_start_is_finished() {
        let base = tempfile::tempdir().unwrap();
        let whole = open(base.path()).unwrap();
        let root = read(&whole.path(ROOT)).unwrap();
        fs::remove_file(whole.path(ISSUER)).unwrap();
        fs::remove_file(whole.path(ANCHORS)).unwrap();
        open(base.path()).unwrap().load().unwrap();
        assert_eq!(read(&whole.path(ROOT)).unwrap(), root);
    }

    #[test]
    fn a_file_is_never_overwritten_by_create() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("file.pem");
        create(&path, "first").unwrap();
        assert!(create(&path, "second").is_err());
        assert_eq!(read(&path).unwrap(), "first");
        replace(&path, "third").unwrap();
        assert_eq!((read(&path).unwrap().as_str(), mode(&path)), ("third", 0o600));
    }

    #[test]
    fn roots_rotate_in_three_steps_and_each_state_is_good() {
        let base = tempfile::tempdir().unwrap();
        let state = open(base.path()).unwrap();
        let old = state.load().unwrap();
        let now = SystemTime::now();
        let name = "web.demo.serviceaccount.identity.gossamer.cluster.local".parse().unwrap();
        let old_leaf = old.self_issue(&name, now).unwrap();

        state.add_root().unwrap();
        let both = state.load().unwrap();
        assert_eq!(both.anchors().certificates().len(), 2);
        assert_eq!(both.chain(), old.chain(), "the issuer is still the old one");

        state.reissue().unwrap();
        let next = state.load().unwrap();
        assert_ne!(next.chain(), old.chain());
        let new_leaf = next.self_issue(&name, now).unwrap();
        for leaf in [&old_leaf, &new_leaf] {
            next.anchors().verify(&leaf.chain, &name, now).unwrap();
        }
        assert!(old.anchors().verify(&new_leaf.chain, &name, now).is_err(), "hence the bundle comes first");

        state.drop_old_roots().unwrap();
        let last = state.load().unwrap();
        assert_eq!(last.anchors().certificates().len(), 1);
        last.anchors().verify(&new_leaf.chain, &name, now).unwrap();
        assert!(last.anchors().verify(&old_leaf.chain, &name, now).is_err());
    }

    #[test]
    fn an_issuer_is_renewed_before_it_ends() {
        let base = tempfile::tempdir().unwrap();
        let state = open(base.path()).unwrap();
        let issuer = state.load().unwrap();
        let now = SystemTime::now();
        assert!(!state.renew_issuer(&issuer, now).unwrap());
        let later = now + defaults::ISSUER_LIFETIME.mul_f64(0.71);
        assert!(state.renew_issuer(&issuer, later).unwrap());
        assert_ne!(state.load().unwrap().chain(), issuer.chain());
    }

    #[test]
    fn a_mounted_secret_is_read_and_never_written() {
        let base = tempfile::tempdir().unwrap();
        let made = open(&base.path().join("made")).unwrap();
        let files = made.read().unwrap();
        let secret = base.path().join("secret");
        fs::create_dir(&secret).unwrap();
        let certificates = files.issuer.split("-----BEGIN PRIVATE").next().unwrap();
        fs::write(secret.join("tls.crt"), certificates).unwrap();
        fs::write(secret.join("tls.key"), &files.key).unwrap();
        let roots = base.path().join("roots");
        fs::create_dir(&roots).unwrap();
        fs::write(roots.join("1.pem"), &files.anchors).unwrap();
        let state = State::open(&secret, "cluster.local", Some(roots)).unwrap();
        state.load().unwrap();
        assert_eq!(fs::read_dir(&secret).unwrap().count(), 2);
        assert!(state.reissue().is_err() && state.add_root().is_err());
    }
}
