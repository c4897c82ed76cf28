//! Any body of a request to the API is understood or refused, without a panic.
#![no_main]

use std::cell::RefCell;

use flowgate::testkit::asked::Asked;

thread_local!(static ASKED: RefCell<Asked> = RefCell::default());

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    ASKED.with_borrow_mut(|asked| asked.ask(body));
});
