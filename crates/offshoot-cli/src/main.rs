//! The offshoot command.
fn main() {}
