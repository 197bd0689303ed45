//! Process groups and collectives: the Rust side of `native/dist.cpp`.
