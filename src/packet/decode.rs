//! The only code that walks headers.

crate::lines! {
    /// Why decode refuses a packet: its form is wrong.
    pub enum Malformed {
        /// The frame is shorter than an Ethernet header.
        ShortFrame = "short-frame",
    }
}
