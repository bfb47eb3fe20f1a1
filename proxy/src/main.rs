//! The proxy as a program of its own, for images; `meshctl` embeds the same.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    std::process::exit(gossamer_proxy::main());
}
