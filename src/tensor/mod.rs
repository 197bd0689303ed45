//! Tensors made safe to use.
