//! Any text is read as a configuration without a panic, and every mistake in it has a place and a message.
#![no_main]

use flowgate::config::Config;
use flowgate::config::source::Source;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let (_, mistakes) = Config::read(&Source::new("fuzz.toml", text));
    for mistake in &mistakes {
        assert!(mistake.place.is_some() && !mistake.message.is_empty(), "{mistake:?}");
    }
});
