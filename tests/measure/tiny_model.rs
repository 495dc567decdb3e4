//! Writes the tests' tiny model to a file, for tests that are not written in Rust.
//!
//! `cargo run -p hearth-tests --example tiny_model FILE`

use std::path::Path;

fn main() -> Result<(), String> {
    let path = std::env::args().nth(1).ok_or("usage: tiny_model FILE")?;
    hearth_test_support::tiny_model::write(Path::new(&path), 1);
    Ok(())
}
