//! Process groups and collectives.
