//! A tensor as text: what it is, and a corner of its numbers.

use std::fmt::Write;

use super::handle::Handle;
use crate::{
    error::Result,
    tensor::{Device, Kind, Tensor, describe_place, guard, is_floating, no_grad},
};

/// Of more than so many rows or columns the first [`EDGE`] are shown.
const MOST: i64 = 6;
const EDGE: i64 = 3;

/// `Tensor float32 [2, 2] on cpu` and the numbers; `Tensor 2.5 (float32 [1] on cpu)` for one.
pub(super) fn describe(handle: &Handle) -> String {
    let tensor = handle.tensor();
    let place = describe_place(tensor);
    if let Ok(value) = handle.item() {
        return format!("Tensor {value} ({place})");
    }
    match guard("print", || no_grad(|| corner(tensor))) {
        Ok(numbers) => format!("Tensor {place}\n{numbers}"),
        // Numbers that cannot be read say what they are.
        Err(_) => format!("Tensor {place}"),
    }
}

/// The first numbers of each dimension.
pub(crate) fn corner(tensor: &Tensor) -> Result<String> {
    let shape = tensor.size();
    let mut view = tensor.shallow_clone();
    for (dim, &size) in shape.iter().enumerate() {
        // Of more than two dimensions the first matrices.
        let most = if dim + 2 < shape.len() { 1 } else { MOST };
        if size > most {
            view = view.f_narrow(dim as i64, 0, if most == 1 { 1 } else { EDGE })?;
        }
    }
    let flat = view.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?.f_reshape([-1i64])?;
    let values = Vec::<f64>::try_from(&flat)?;
    let mut text = String::new();
    let mut values = values.iter().map(|value| number(tensor.kind(), *value));
    write(&mut text, &shape, &view.size(), 1, &mut values);
    Ok(text)
}

fn write(
    text: &mut String,
    shape: &[i64],
    taken: &[i64],
    depth: usize,
    values: &mut impl Iterator<Item = String>,
) {
    let (Some((&size, shape)), Some((&shown, taken))) = (shape.split_first(), taken.split_first())
    else {
        text.push_str(&values.next().unwrap_or_default());
        return;
    };
    let separator = match shape.is_empty() {
        true => ", ".to_owned(),
        false => format!(",\n{}", " ".repeat(depth)),
    };
    text.push('[');
    for i in 0..shown {
        if i > 0 {
            text.push_str(&separator);
        }
        write(text, shape, taken, depth + 1, values);
    }
    if shown < size {
        let _ = write!(text, "{separator}...");
    }
    text.push(']');
}

fn number(kind: Kind, value: f64) -> String {
    match kind {
        Kind::Bool => (value != 0.0).to_string(),
        kind if !is_floating(kind) => format!("{value:.0}"),
        _ if value != 0.0 && !(1e-4..1e5).contains(&value.abs()) => format!("{value:.4e}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tensor: Tensor) -> String {
        describe(&Handle::new(tensor))
    }

    #[test]
    fn a_corner_of_the_numbers_is_shown() {
        assert_eq!(of(Tensor::from_slice(&[2.5f32])), "Tensor 2.5 (float32 [1] on cpu)");
        let small = Tensor::from_slice(&[1i64, 2, 3, 4]).view([2, 2]);
        assert_eq!(of(small), "Tensor int64 [2, 2] on cpu\n[[1, 2],\n [3, 4]]");
        let long = Tensor::arange(100, (Kind::Float, Device::Cpu));
        assert_eq!(of(long), "Tensor float32 [100] on cpu\n[0.0000, 1.0000, 2.0000, ...]");
        let deep = Tensor::zeros([2, 2, 1], (Kind::Bool, Device::Cpu));
        assert_eq!(of(deep), "Tensor bool [2, 2, 1] on cpu\n[[[false],\n  [false]],\n ...]");
        let empty = Tensor::zeros([0], (Kind::Float, Device::Cpu));
        assert_eq!(of(empty), "Tensor float32 [0] on cpu\n[]");
    }
}
