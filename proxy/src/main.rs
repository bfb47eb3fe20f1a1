//! The proxy as a program of its own, for images; `meshctl` embeds the same.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    std::process::exit(gossamer_proxy::pod::main(&arguments));
}
