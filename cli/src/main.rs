//! `meshctl`. Everything is in the library.

fn main() -> std::process::ExitCode {
    meshctl::main()
}
