//! Views over header bytes that somebody else owns.
