//! Prints docs/config.md.

fn main() -> unified::Result<()> {
    print!("{}", unified::train::schema::page()?);
    Ok(())
}
