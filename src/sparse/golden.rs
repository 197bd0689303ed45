//! The layouts, outputs and gradients of DeepSpeed and PyTorch that tests compare with.

use serde_json::Value;

use super::layout::{BlockMatrix, Layout};
use crate::tensor::{SafetensorsFile, Tensor};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sparse");

fn list(key: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(format!("{DIR}/attention.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    all[key].as_array().unwrap().clone()
}

/// The layouts with their options.
pub(super) fn cases() -> Vec<Value> {
    list("cases")
}

/// Options that DeepSpeed refuses.
pub(super) fn refused() -> Vec<Value> {
    list("refused")
}

/// The layout of a case, whose rows are text.
pub(super) fn expected(rows: &Value, heads: i64) -> Layout {
    let rows: Vec<Vec<String>> = serde_json::from_value(rows.clone()).unwrap();
    let of = rows.len() as i64;
    let group = |(i, rows): (i64, &Vec<String>)| {
        let mut matrix = BlockMatrix::new(rows.len());
        for (row, text) in rows.iter().enumerate() {
            for (col, seen) in text.chars().enumerate() {
                matrix.set(row, col, seen == '1');
            }
        }
        (matrix, (0..heads).filter(|head| head % of == i).collect())
    };
    Layout { groups: (0..).zip(&rows).map(group).collect() }
}

/// Gives tensors by their names.
pub(super) fn tensors() -> impl Fn(&str) -> Tensor {
    let file =
        SafetensorsFile::open(std::path::Path::new(DIR).join("attention.safetensors")).unwrap();
    move |name| {
        let options = (file.kind(name).unwrap(), crate::tensor::Device::Cpu);
        let tensor = Tensor::empty(file.shape(name).unwrap(), options);
        file.copy_into(name, &tensor).unwrap();
        tensor
    }
}
