//! The API of a live flowgate over TCP: TLS, tokens, client certificates; what slow, broken and hostile clients can do to it;
//! and its OpenAPI document, from which schemathesis makes requests. Traffic comes from the null device.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use common::appliance::{FLOWGATE, Flowgate, PATIENCE, wait_for};
use common::skip;
use serde_json::Value;

const WIRE: &str = "\
[[port]]\nname = \"lan\"\ndevice = \"net_null0\"\nzone = \"inside\"\n\
[[port]]\nname = \"wan\"\ndevice = \"net_null1\"\nzone = \"outside\"\n\
[pipeline]\nstages = [\"talkers\", \"conntrack\", \"cross\", \"acl\"]\n\
[cross]\nwire = [{ ports = [\"lan\", \"wan\"] }]\n\
[set]\nbad = [\"198.51.100.0/24\"]\n\
[acl]\ndefault = \"allow\"\n\
[[acl.rule]]\nname = \"bad\"\nsource = \"@bad\"\naction = \"deny\"\n";

/// A port that nobody listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// A new caller: the file with the token.
fn token(dir: &Path, name: &str, more: &[&str]) -> PathBuf {
    let made =
        Command::new(FLOWGATE).args(["token", name]).arg(dir.join("tokens")).args(more).output().expect("it starts");
    assert!(made.status.success(), "{}", text(&made));
    let file = dir.join(name);
    std::fs::write(&file, &made.stdout).expect("writable");
    file
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn openssl(dir: &Path, words: &str) {
    let output = Command::new("openssl").current_dir(dir).args(words.split(' ')).output().expect("openssl");
    assert!(output.status.success(), "openssl {words}: {}", text(&output));
}

/// An authority `ca`, and certificates of it for `server` (and `next`) and `client`.
fn certificates(dir: &Path) {
    const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(dir, &format!("req -x509 {KEY} -keyout ca.key -out ca.crt -days 2 -subj /CN=authority"));
    let names = "subjectAltName=IP:127.0.0.1,IP:0:0:0:0:0:0:0:1,DNS:localhost\n";
    for (name, extension) in [("server", names), ("next", names), ("client", "extendedKeyUsage=clientAuth\n")] {
        std::fs::write(dir.join("extension"), extension).expect("writable");
        openssl(dir, &format!("req {KEY} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        let by = "-CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extension";
        openssl(dir, &format!("x509 -req -in {name}.csr {by} -out {name}.crt"));
    }
}

/// curl, with the status behind the body.
fn curl(dir: &Path, words: &[&str]) -> (String, String) {
    let mut command = Command::new("curl");
    command.current_dir(dir).args(["-sS", "-m", "30", "--cacert", "ca.crt", "-w", "\n%{http_code} %{content_type}"]);
    let output = command.args(words).output().expect("curl");
    let all = text(&output);
    let (body, status) = all.trim_end().rsplit_once('\n').unwrap_or(("", &all));
    (status.to_owned(), body.to_owned())
}

const PROBLEM: &str = "application/problem+json";

#[test]
fn over_tls_with_tokens_and_certificates() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    certificates(dir);
    let (reader, writer) = (token(dir, "reader", &[]), token(dir, "writer", &["--write"]));
    let port = free_port();
    let file = |name: &str| dir.join(name).display().to_string();
    let api = format!(
        "[api]\nlisten = [\"127.0.0.1:{port}\", \"[::1]:{port}\"]\ncertificate = {:?}\nkey = {:?}\nclient_ca = {:?}\n\
         tokens = {:?}\nopen = [\"/v1/drops\"]\n",
        file("server.crt"),
        file("server.key"),
        file("ca.crt"),
        file("tokens"),
    );
    let flowgate = Flowgate::start(dir, &(WIRE.to_owned() + &api));
    let url = format!("https://127.0.0.1:{port}");
    let at = |path: &str| format!("{url}{path}");

    // The command line, over IPv4 and IPv6, as the token allows.
    let ca = file("ca.crt");
    let ask = |url: &str, words: &[&str], show: &[&str]| {
        let output = Command::new(FLOWGATE).args(words).args(["--url", url, "--cacert", &ca]).args(show).output();
        let output = output.expect("it starts");
        (output.status.code(), text(&output))
    };
    let by = |file: &Path| file.display().to_string();
    for address in [&url, &format!("https://[::1]:{port}"), &format!("https://localhost:{port}")] {
        let (code, shown) = ask(address, &["show", "ports", "--json"], &["--token-file", &by(&reader)]);
        assert_eq!(code, Some(0), "{address}: {shown}");
        let ports: Value = serde_json::from_str(&shown).expect("JSON");
        assert_eq!(ports[1]["name"], "wan");
    }
    let flush = ["flush", "flows", "--all"];
    let (code, told) = ask(&url, &flush, &["--token-file", &by(&reader)]);
    assert_eq!((code, told.contains("you may read, but not change")), (Some(3), true), "{told}");
    let (code, told) = ask(&url, &flush, &["--token-file", &by(&writer)]);
    assert_eq!((code, told.contains("flows removed")), (Some(0), true), "{told}");
    // A certificate of the authority reads; one that the file names does what is said there.
    let own = ["--cert", &file("client.crt"), "--key", &file("client.key")];
    assert_eq!(ask(&url, &["show", "flows"], &own).0, Some(0), "reading by a question");
    assert_eq!(ask(&url, &flush, &own).0, Some(3));
    let mut print = Command::new("openssl");
    print.current_dir(dir).args("x509 -in client.crt -noout -fingerprint -sha256".split(' '));
    let print = text(&print.output().expect("openssl"));
    let hash = print.trim().split_once('=').expect("a fingerprint").1;
    let mut tokens = std::fs::read_to_string(file("tokens")).expect("there");
    tokens += &format!("operator write certificate:{hash}\n");
    std::fs::write(file("tokens"), &tokens).expect("writable");
    wait_for("the file of callers is read again", || ask(&url, &flush, &own).0 == Some(0));

    // Without: nothing but what is open.
    assert_eq!(curl(dir, &[&at("/v1/ports")]).0, format!("401 {PROBLEM}"));
    assert_eq!(curl(dir, &["-H", "Authorization: Bearer wrong", &at("/v1/ports")]).0, format!("401 {PROBLEM}"));
    assert_eq!(curl(dir, &[&at("/v1/drops")]).0, "200 application/json");
    assert_eq!(curl(dir, &["-X", "POST", &at("/v1/drops")]).0, format!("401 {PROBLEM}"));
    assert!(curl(dir, &[&format!("http://127.0.0.1:{port}/v1/drops")]).0.starts_with("000"), "plain HTTP");
    // A certificate of nobody known is refused by TLS itself.
    openssl(
        dir,
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout no.key -out no.crt -subj /CN=no",
    );
    let (status, _) = curl(dir, &["--cert", "no.crt", "--key", "no.key", &at("/v1/drops")]);
    assert!(status.contains("000"), "{status}");

    // What there is not, and what is wrong, in the one shape.
    let mine = format!("Authorization: Bearer {}", std::fs::read_to_string(&writer).expect("there").trim());
    for (words, status) in [
        (vec!["/nothing"], 404),
        (vec!["/v1/ports", "-X", "DELETE"], 405),
        (vec!["/v1/flows", "-d", "{}"], 415),
        (vec!["/v1/flows", "-H", "Content-Type: application/json", "-d", "{\"limit\":"], 400),
        (vec!["/v1/flows", "-H", "Content-Type: application/json", "-d", "{\"flows\":{\"rule\":\"bat\"}}"], 400),
        (vec!["/v1/stages/nothing"], 404),
    ] {
        let url = at(words[0]);
        let (got, body) = curl(dir, &[&["-H", &mine, &url], &words[1..]].concat());
        assert_eq!(got, format!("{status} {PROBLEM}"), "{words:?}: {body}");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(body["status"], status);
        assert!(body["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{body}");
    }

    // What the documentation shows works.
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/api.md")).expect("there");
    let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("curl ")).collect();
    assert!(lines.len() >= 5);
    for line in lines {
        let mut shell = Command::new("sh");
        shell.current_dir(dir).args(["-c", line]).env("FLOWGATE", &url);
        let token = std::fs::read_to_string(&writer).expect("there");
        let output = shell.env("TOKEN", token.trim()).output().expect("a shell");
        assert!(output.status.success() && !output.stdout.is_empty(), "{line}: {}", text(&output));
    }

    // Another certificate is shown once its files are there; a broken one is not.
    let subject = || {
        let pipe = format!(
            "openssl s_client -connect 127.0.0.1:{port} -CAfile ca.crt </dev/null 2>/dev/null | openssl x509 -noout -subject"
        );
        text(&Command::new("sh").current_dir(dir).args(["-c", &pipe]).output().expect("a shell"))
    };
    assert!(subject().contains("server"), "{}", subject());
    for kind in ["key", "crt"] {
        std::fs::copy(file(&format!("next.{kind}")), file(&format!("server.{kind}"))).expect("copied");
    }
    wait_for("the new certificate", || subject().contains("next"));
    std::fs::write(file("server.crt"), "nonsense").expect("writable");
    wait_for("a word about it", || flowgate.log().contains("what was read before stays"));
    assert!(subject().contains("next"));
    flowgate.stop();
}

/// A flowgate that answers plain HTTP on loopback, and is quick to lose its patience.
struct Plain {
    dir: tempfile::TempDir,
    flowgate: Flowgate,
    port: u16,
    token: String,
}

impl Plain {
    fn start() -> Plain {
        let dir = tempfile::tempdir().expect("a folder");
        let token = token(dir.path(), "writer", &["--write"]);
        let port = free_port();
        let api = format!(
            "[api]\nlisten = [\"127.0.0.1:{port}\"]\ntls = false\ntokens = {:?}\nheader_timeout = \"1s\"\n\
             body_timeout = \"1s\"\nwrite_timeout = \"1s\"\nmax_body = \"64KiB\"\nmax_connections = 100\n\
             max_connections_per_peer = 80\n",
            dir.path().join("tokens"),
        );
        let flowgate = Flowgate::start(dir.path(), &(WIRE.to_owned() + &api));
        let token = std::fs::read_to_string(token).expect("there").trim().to_owned();
        Plain { dir, flowgate, port, token }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a stream");
        stream
    }

    /// Sends bytes, and returns all that comes back until the other end closes.
    fn talk(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // It may have been refused before it was sent whole.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        rest(&mut stream)
    }

    fn post(&self, length: &str) -> String {
        format!(
            "POST /v1/flows HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n{length}\r\n\r\n",
            self.token
        )
    }

    /// The worker goes on, and the control socket answers.
    fn lives(&self) {
        let before = self.flowgate.accounts()[0].received;
        wait_for("packets go on", || self.flowgate.accounts()[0].received > before);
    }

    /// Bytes of memory that the process holds.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.flowgate.pid())).expect("it lives");
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("a line");
        line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("a number") << 10
    }
}

/// What still comes; a reset is an end like another.
fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            panic!("it waits for ever")
        }
        _ => String::from_utf8_lossy(&all).into_owned(),
    }
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("")
}

#[test]
fn broken_slow_and_hostile_clients() {
    let plain = Plain::start();
    plain.lives();

    // What is no HTTP is refused, and none of it is an error of the server.
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(200_000));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(1000));
    let wide = format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "b".repeat(200_000));
    let garbage: Vec<u8> = (0..5000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let cases: [(&str, &[u8], &[&str]); 14] = [
        ("nothing", b"", &[""]),
        ("garbage", &garbage, &["400", ""]),
        ("TLS where none is", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &["400", ""]),
        ("no version", b"GET /\r\n\r\n", &["400", ""]),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &["400", "505", ""]),
        ("a space in a name", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", &["400"]),
        (
            "two lengths",
            b"POST /v1/flows HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            &["400"],
        ),
        ("a negative length", b"POST /v1/flows HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", &["400"]),
        ("no chunk", b"POST /v1/flows HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", &["401"]),
        ("a zero in a name", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", &["400"]),
        ("a long name", long.as_bytes(), &["414", "431", ""]),
        ("many headers", many.as_bytes(), &["431", ""]),
        ("a wide header", wide.as_bytes(), &["431", ""]),
        ("nobody known", b"GET /v1/ports HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", &["401"]),
    ];
    // A connection before it that was cut off may still be counted, and then there is no room for one more.
    let insist = |bytes: &[u8]| {
        for _ in 0..100 {
            let answer = plain.talk(bytes);
            if !answer.is_empty() {
                return answer;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        String::new()
    };
    for (what, bytes, good) in cases {
        let answer = if good.contains(&"") { plain.talk(bytes) } else { insist(bytes) };
        assert!(good.contains(&status(&answer)), "{what}: {answer:?}");
    }
    let broken = insist((plain.post("Transfer-Encoding: chunked") + "zz\r\n").as_bytes());
    assert_eq!(status(&broken), "400", "{broken}");
    // Bodies: more than is taken, whether said before or not.
    for (length, body) in [
        ("Content-Length: 70000", " ".repeat(70_000)),
        ("Transfer-Encoding: chunked", format!("11171\r\n{}", " ".repeat(70_001))),
    ] {
        let mut stream = plain.connect();
        let _ = stream.write_all((plain.post(length) + &body).as_bytes());
        let answer = rest(&mut stream);
        assert!(["413", ""].contains(&status(&answer)), "{length}: {answer}");
    }
    let announced = insist(plain.post("Content-Length: 99999999999").as_bytes());
    assert_eq!(status(&announced), "413", "nothing of it is waited for: {announced}");

    // Who dawdles is let go: a head, a body, and a connection that says nothing more.
    let mut heads: Vec<TcpStream> = (0..30).map(|_| plain.connect()).collect();
    heads.iter_mut().for_each(|stream| stream.write_all(b"GET /v1/ports HTTP/1.1\r\nX: ").expect("taken"));
    let mut bodies: Vec<TcpStream> = (0..30).map(|_| plain.connect()).collect();
    let began = plain.post("Content-Length: 100") + "{";
    bodies.iter_mut().for_each(|stream| stream.write_all(began.as_bytes()).expect("taken"));
    plain.lives();
    for stream in &mut heads {
        assert!(["408", ""].contains(&status(&rest(stream))));
    }
    for stream in &mut bodies {
        assert_eq!(status(&rest(stream)), "408");
    }
    let mut idle = plain.connect();
    let ports = format!("GET /v1/ports HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n", plain.token);
    idle.write_all(ports.as_bytes()).expect("taken");
    assert_eq!(status(&rest(&mut idle)), "200");

    // Those that vanish, in the middle of what they ask.
    for n in 0..300 {
        let mut stream = plain.connect();
        let _ = stream.write_all(&ports.as_bytes()[..n % ports.len()]);
    }
    for _ in 0..50 {
        let _ = plain.connect().write_all((plain.post("Content-Length: 12") + "{\"limit\": 5}").as_bytes());
    }
    plain.lives();
    plain.flowgate.stop();
    drop(plain.dir);
}

#[test]
fn a_thousand_connections() {
    let plain = Plain::start();
    let ports = format!("GET /v1/openapi.json HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n", plain.token);
    // Each asks for more than fits into what the kernel keeps, and fetches nothing.
    let greedy = ports.repeat(400);
    let storm = || {
        let mut all: Vec<TcpStream> = Vec::new();
        for _ in 0..1000 {
            let mut stream = plain.connect();
            stream.set_write_timeout(Some(Duration::from_millis(10))).expect("a stream");
            let _ = stream.write(greedy.as_bytes());
            all.push(stream);
        }
        plain.lives();
        let answered = plain.flowgate.show("rules");
        assert!(answered.is_array());
        drop(all);
    };
    storm();
    let before = plain.memory();
    storm();
    storm();
    let after = plain.memory();
    assert!(after < before + (16 << 20), "memory grew from {before} to {after} bytes");
    // When they are gone, there is room again.
    wait_for("room again", || {
        let answer = plain.talk(ports.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1).as_bytes());
        status(&answer) == "200"
    });
    plain.flowgate.stop();
}

/// schemathesis, in an environment of its own below `target`; nothing if it cannot be had.
fn schemathesis() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/schemathesis");
    let program = folder.join("bin/schemathesis");
    let good = || Command::new(&program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !good() {
        let _ = Command::new("python3").args(["-m", "venv"]).arg(&folder).output();
        let pip = ["180", "bin/pip", "install", "-q", "--disable-pip-version-check", "schemathesis>=4,<5"];
        let _ = Command::new("timeout").current_dir(&folder).args(pip).output();
    }
    good().then_some(program)
}

#[test]
fn requests_made_from_the_document() {
    let Some(schemathesis) = schemathesis() else {
        return skip("api-schemathesis", "PyPI, or python3-venv, is not there");
    };
    let plain = Plain::start();
    let url = format!("http://127.0.0.1:{}", plain.port);
    let bearer = format!("Authorization: Bearer {}", plain.token);
    let output = Command::new("timeout")
        .current_dir(plain.dir.path())
        .args(["-s", "KILL", "240"])
        .arg(schemathesis)
        .args(["run", &format!("{url}/v1/openapi.json"), "-H", &bearer, "--max-examples", "3", "--seed", "7"])
        // That a zone or a rule exists, no schema can say; the secret is in the header of every request.
        .args(["--exclude-checks", "positive_data_acceptance,ignored_auth"])
        // A capture goes on until it is told to end.
        .args(["--exclude-path", "/v1/capture"])
        .args(["--phases", "examples,coverage,fuzzing", "--no-color"])
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", text(&output));
    plain.lives();
    plain.flowgate.stop();
}
