//! Who asks, and what they may do: bearer tokens and client certificates.

use std::fmt::Write;
use std::path::Path;

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::config::api::Role;

/// Somebody who asks, as the connection shows them.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Over the control socket: whoever its file lets in may do everything.
    Socket,
    /// Over the network, perhaps with a certificate.
    Remote(Option<Fingerprint>),
}

/// SHA-256, of a token or of a certificate's DER.
pub type Fingerprint = [u8; 32];

/// The SHA-256 of something.
pub fn fingerprint(bytes: &[u8]) -> Fingerprint {
    digest(&SHA256, bytes).as_ref().try_into().unwrap_or_default()
}

/// The callers who are known.
#[derive(Clone, Debug, Default)]
pub struct Access {
    tokens: Vec<(Fingerprint, Role)>,
    certificates: Vec<(Fingerprint, Role)>,
    certified: Option<Role>,
}

impl Access {
    /// Reads the file of callers; `certified` is what those may do who have a certificate that is not in it. The error names
    /// the file and line.
    pub fn read(file: Option<&str>, certified: Option<Role>) -> Result<Access, String> {
        let mut access = Access { certified, ..Access::default() };
        let Some(file) = file else { return Ok(access) };
        let text = std::fs::read_to_string(Path::new(file)).map_err(|error| format!("{file}: {error}"))?;
        for (number, line) in text.lines().enumerate() {
            access.add(line).map_err(|wrong| format!("{file}:{}: {wrong}", number + 1))?;
        }
        Ok(access)
    }

    fn add(&mut self, line: &str) -> Result<(), &'static str> {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let [_, role, secret] = words[..] else {
            return if words.is_empty() { Ok(()) } else { Err("expected NAME read|write sha256:HASH") };
        };
        let role = match role {
            "read" => Role::Read,
            "write" => Role::Write,
            _ => return Err("expected \"read\" or \"write\" behind the name"),
        };
        let (list, hash) = match secret.split_once(':') {
            Some(("sha256", hash)) => (&mut self.tokens, hash),
            Some(("certificate", hash)) => (&mut self.certificates, hash),
            _ => return Err("expected sha256:HASH or certificate:HASH behind the role"),
        };
        let hash = unhex(hash).ok_or("the hash is not 64 hexadecimal digits")?;
        list.push((hash, role));
        Ok(())
    }

    /// What a caller may do; nothing if they are not known. Takes as long for a wrong token as for a right one.
    pub fn role(&self, caller: &Caller, token: Option<&[u8]>) -> Option<Role> {
        let certificate = match caller {
            Caller::Socket => return Some(Role::Write),
            Caller::Remote(certificate) => certificate,
        };
        if let Some(token) = token {
            return find(&self.tokens, &fingerprint(token));
        }
        certificate.as_ref().and_then(|certificate| find(&self.certificates, certificate).or(self.certified))
    }
}

fn find(list: &[(Fingerprint, Role)], wanted: &Fingerprint) -> Option<Role> {
    // 0 nothing, 1 read, 2 write.
    let mut found = 0_u8;
    for (known, role) in list {
        let same: Choice = known.as_slice().ct_eq(wanted);
        found.conditional_assign(&if *role == Role::Write { 2 } else { 1 }, same);
    }
    match found {
        0 => None,
        1 => Some(Role::Read),
        _ => Some(Role::Write),
    }
}

fn unhex(text: &str) -> Option<Fingerprint> {
    // As openssl prints fingerprints, too.
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A new token of 256 random bits, and the line of the file by which it is known.
pub fn new_token(name: &str, role: Role) -> Result<(String, String), String> {
    let mut secret = [0; 32];
    SystemRandom::new().fill(&mut secret).map_err(|_| "there is no randomness to be had".to_owned())?;
    let token = hex(&secret);
    let role = if role == Role::Write { "write" } else { "read" };
    let line = format!("{name} {role} sha256:{}", hex(&fingerprint(token.as_bytes())));
    Ok((token, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_hash() {
        let (read, line) = new_token("grafana", Role::Read).expect("random");
        let (write, other) = new_token("robot", Role::Write).expect("random");
        assert_ne!(read, write);
        let mut access = Access::default();
        for line in ["# callers", "", &line, &format!("{other} # the automation's")] {
            access.add(line).expect("good");
        }
        let remote = Caller::Remote(None);
        let may = |token: &str| access.role(&remote, Some(token.as_bytes()));
        assert_eq!((may(&read), may(&write)), (Some(Role::Read), Some(Role::Write)));
        assert_eq!([may(""), may(&read[1..]), may(&line)], [None; 3]);
        assert_eq!(access.role(&remote, None), None);
        assert_eq!(access.role(&Caller::Socket, None), Some(Role::Write));
    }

    #[test]
    fn certificates_by_authority_and_by_fingerprint() {
        let mut access = Access { certified: Some(Role::Read), ..Access::default() };
        let hash = fingerprint(b"der").map(|byte| format!("{byte:02X}")).join(":");
        access.add(&format!("ops write certificate:{hash}")).expect("good");
        let role = |der: &[u8]| access.role(&Caller::Remote(Some(fingerprint(der))), None);
        assert_eq!((role(b"der"), role(b"another")), (Some(Role::Write), Some(Role::Read)));
        assert_eq!(access.role(&Caller::Remote(Some(fingerprint(b"der"))), Some(b"wrong")), None);
    }

    #[test]
    fn mistakes_in_the_file_name_their_line() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_str().expect("utf-8");
        for (line, what) in [
            ("grafana read", "expected NAME"),
            ("grafana admin sha256:00", "expected \"read\""),
            ("grafana read md5:00", "expected sha256"),
            ("grafana read sha256:00", "64 hexadecimal"),
        ] {
            std::fs::write(path, format!("# one\n{line}\n")).expect("written");
            let wrong = Access::read(Some(path), None).expect_err(line);
            assert!(wrong.starts_with(&format!("{path}:2: ")) && wrong.contains(what), "{wrong}");
        }
    }
}
