//! What the tests share: skipping out loud, and the rigs around the real binary.

#![allow(dead_code, reason = "each test file uses its own part")]

pub mod appliance;
pub mod echo;
pub mod frames;
pub mod frr;
pub mod host;
pub mod testpmd;

/// Says that a test cannot run here. With `FLOWGATE_REQUIRE=all` that is a failure unless `tests/allowed-skips.txt` names it.
pub fn skip(name: &str, why: &str) {
    println!("skipped: {name}: {why}");
    if std::env::var("FLOWGATE_REQUIRE").as_deref() == Ok("all") {
        let allowed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/allowed-skips.txt");
        let allowed = std::fs::read_to_string(allowed).unwrap_or_default();
        let named = allowed.lines().any(|line| line.split(':').next() == Some(name));
        assert!(named, "{name} was skipped ({why}), which tests/allowed-skips.txt does not allow");
    }
}
