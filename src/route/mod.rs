//! Where packets go: the forwarding table and what it is made of.

pub mod epoch;
pub mod fib;
