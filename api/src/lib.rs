//! What every process of the mesh has in common: words, wire, knobs, process shell.
