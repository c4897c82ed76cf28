//! What the tests of the whole binary share.

use std::path::Path;

/// Says that a test, or the part of it called `name`, cannot run here. With `FLOWGATE_REQUIRE=all` that is a failure, unless
/// `tests/allowed-skips.txt` has a line `name: reason`.
pub fn skip(name: &str, why: &str) {
    println!("skipped: {name}: {why}");
    if std::env::var("FLOWGATE_REQUIRE").is_ok_and(|value| value == "all") {
        let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/allowed-skips.txt");
        let allowed = std::fs::read_to_string(list).unwrap_or_default();
        let allowed = allowed.lines().any(|line| line.split_once(':').is_some_and(|(known, _)| known == name));
        assert!(allowed, "{name} was skipped ({why}), which tests/allowed-skips.txt does not allow");
    }
}
