# What people do with this repository. `just` lists it.

default:
    @just --list

# The mesh around a small application, live
demo *args:
    cargo run --release -- demo {{ args }}

# All tests
test:
    cargo test --workspace

# Formatting and lints
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets

# Everything that must hold before a change is taken
ci:
    .ci/run

# The README's tables, written anew from the code
readme:
    MESH_UPDATE=1 cargo test -p gossamer-tests --test tidy

# Memory stays flat for two minutes at full speed
soak:
    cargo test --release -p gossamer-tests --test kill -- --ignored --nocapture

# Licences and advisories of all dependencies (cargo-deny)
deny:
    cargo deny check
