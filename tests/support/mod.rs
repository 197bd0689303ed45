//! What several tests stand on.

pub(crate) mod hub_server;
pub(crate) mod recipe;
