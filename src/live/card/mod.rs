//! Values as data: a title, facts, a table, some text.

mod data;
mod layout;
mod model;
mod plain;
mod tensor;
mod training;
mod value;

pub use self::layout::{Card, Table};
