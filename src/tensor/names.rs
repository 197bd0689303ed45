//! Dtypes and devices under PyTorch's names.

use super::{Device, Kind, Tensor};

/// The dtypes by PyTorch's names.
pub const DTYPES: &[(&str, Kind)] = &[
    ("float32", Kind::Float),
    ("float64", Kind::Double),
    ("float16", Kind::Half),
    ("bfloat16", Kind::BFloat16),
    ("int64", Kind::Int64),
    ("int32", Kind::Int),
    ("int16", Kind::Int16),
    ("int8", Kind::Int8),
    ("uint8", Kind::Uint8),
    ("bool", Kind::Bool),
];

/// A dtype by its name, if `text` is one.
pub fn dtype(text: &str) -> Option<Kind> {
    DTYPES.iter().find(|(name, _)| *name == text).map(|(_, kind)| *kind)
}

/// Dtype, shape and device, as in `float32 [2, 3] on cuda:0`.
pub fn describe_place(tensor: &Tensor) -> String {
    let (dtype, device) = (dtype_name(tensor.kind()), device_name(tensor.device()));
    format!("{dtype} {:?} on {device}", tensor.size())
}

/// PyTorch's name of an element type.
pub fn dtype_name(kind: Kind) -> String {
    let known = DTYPES.iter().find(|(_, known)| *known == kind);
    known.map_or_else(|| format!("{kind:?}").to_lowercase(), |(name, _)| (*name).to_owned())
}

/// PyTorch's name of a device.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}
