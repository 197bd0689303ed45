//! The only unsafe code: libtorch through a C++ file of our own.
