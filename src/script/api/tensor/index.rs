//! Elements and parts of tensors: `t[0]`, `t[.., 0]`, `t[0, 1..3]`, `t[":, -1"]`, and `for`.
//!
//! A part is a view: writing into it writes into the tensor. An index means the same as in PyTorch.
//! Rhai's grammar has one index between brackets: several are one value of the type
//! [`Indices`](api::Indices), see `recipe/indices.rs`.

use std::ops::{Range, RangeInclusive};

use rhai::{Array, Module, plugin::*};

use super::{
    Handle, check,
    math::into_shape,
    read::{Nested, Operand, ints},
    shape::{first_size, real_dim},
};
use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
    recipe::{
        error::ScriptResult,
        value::{argument, describe},
    },
    script::iterate::set_iterator,
    tensor::{Kind, Tensor, device_name, dtype_name, guard},
};

/// The properties of a tensor, for misspelt ones, which Rhai looks up as an index.
const PROPERTIES: &[&str] =
    &["shape", "dtype", "device", "ndim", "T", "requires_grad", "grad", "is_leaf"];

/// The functions of indices, and `for` over the first dimension.
pub(in crate::script::api) fn build() -> Module {
    let mut module = rhai::exported_module!(api);
    set_iterator(&mut module, |tensor: Handle| {
        let len = first_size(&tensor)?;
        let row = move |i| guard("for", || Ok(Handle::new(tensor.0.f_select(0, i)?)));
        Ok((0..len).map(move |i| row(i).map(Dynamic::from)))
    });
    module
}

/// Parts of tensors.
#[export_module]
pub mod api {
    use crate::script::api::tensor::api::Tensor;

    /// Indices of several dimensions.
    pub type Indices = super::Indices;

    /// Makes one index of several, as commas between brackets do: `t[0, 1..3]` is
    /// `t[several_indices([0, 1..3])]`.
    ///
    /// ```rhai
    /// let t = arange(24).reshape([2, 3, 4]);
    /// let corner = [];
    /// for size in t.shape { corner.push(0); }
    /// print(t[several_indices(corner)].item());        // 0
    /// ```
    pub fn several_indices(indices: Array) -> Indices {
        super::Indices(indices)
    }

    /// Returns a part of a tensor: a view of it, which can also be assigned.
    ///
    /// * `index` - for each dimension an index, from the end where it is negative; a range, `..` for
    ///   all of it; an array or a tensor of indices or of bool; `"..."` for as many dimensions as
    ///   there are; `()` for a new one; or the whole as text, as between Python's brackets
    ///
    /// ```rhai
    /// let t = arange(24).reshape([2, 3, 4]);
    /// print(t[0].shape);                               // [3, 4]
    /// print(t[-1, 1..3].shape);                        // [2, 4]
    /// print(t[.., 0].shape);                           // [2, 4]
    /// print(t[0, [2, 0]].shape);                       // [2, 4]
    /// print(t["..., ::2"].shape);                      // [2, 3, 2]
    /// t[.., 0] = 0;
    /// ```
    #[rhai_fn(index_get, return_raw, pure)]
    pub fn get(tensor: &mut Tensor, index: Dynamic) -> ScriptResult<Tensor> {
        Ok(super::get(tensor, &index)?)
    }

    /// Writes a tensor, with broadcasting, or a number into a part of a tensor.
    ///
    /// ```rhai
    /// let t = zeros([3, 3]);
    /// t[1] = 5;
    /// t[0, 1..3] = tensor([1.0, 2.0]);
    /// ```
    #[rhai_fn(index_set, return_raw, pure)]
    pub fn set(tensor: &mut Tensor, index: Dynamic, value: Dynamic) -> ScriptResult<()> {
        Ok(super::set(tensor, &index, &value)?)
    }

    /// Returns the part with one index in a dimension, which goes away.
    ///
    /// ```rhai
    /// let column = zeros([3, 4]).select(1, -1);        // [3]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn select(tensor: Tensor, dim: Dynamic, index: Dynamic) -> ScriptResult<Tensor> {
        let t = tensor.tensor();
        let dim = super::real_dim("select", t, argument("dim", &dim)?)?;
        let index: i64 = argument("index", &index)?;
        let index = check::index("select", t.size()[dim as usize], dim, index)?;
        check::op("select", &[t], || t.f_select(dim, index))
    }

    /// Returns the part with `len` indices in a dimension, from `start` on.
    #[rhai_fn(return_raw)]
    pub fn narrow(
        tensor: Tensor,
        dim: Dynamic,
        start: Dynamic,
        len: Dynamic,
    ) -> ScriptResult<Tensor> {
        let t = tensor.tensor();
        let dim = super::real_dim("narrow", t, argument("dim", &dim)?)?;
        let (start, len): (i64, i64) = (argument("start", &start)?, argument("len", &len)?);
        let size = t.size()[dim as usize];
        let start = if start < 0 { start.saturating_add(size) } else { start };
        if start < 0 || len < 0 || start.saturating_add(len) > size {
            let message = format!(
                "`narrow`: {len} from {start} on are not in dimension {dim} of size {size}"
            );
            return Err(Error::new(Code::BadValue, message).into());
        }
        check::op("narrow", &[t], || t.f_narrow(dim, start, len))
    }

    /// Returns, along a dimension, the element that each index names: `index` has the shape of the
    /// result.
    ///
    /// ```rhai
    /// let logp = randn([4, 10]).log();
    /// let picked = logp.gather(1, randint(0, 10, [4, 1]));
    /// ```
    #[rhai_fn(return_raw)]
    pub fn gather(tensor: Tensor, dim: Dynamic, index: Tensor) -> ScriptResult<Tensor> {
        super::gather(tensor.tensor(), argument("dim", &dim)?, index.tensor())
    }

    /// Returns the parts along a dimension that a list or int64 tensor of indices names.
    #[rhai_fn(return_raw)]
    pub fn index_select(tensor: Tensor, dim: Dynamic, index: Dynamic) -> ScriptResult<Tensor> {
        let t = tensor.tensor();
        let dim = super::real_dim("index_select", t, argument("dim", &dim)?)?;
        let index = match index.clone().try_cast::<Tensor>() {
            Some(index) => index.tensor().shallow_clone(),
            None => {
                let index = ints("index", &index)?;
                check::run("index_select", &[], || {
                    crate::tensor::Tensor::f_from_slice(&index)?.f_to_device(t.device())
                })?
            }
        };
        check::indices("index_select", "indices", &index, t.size()[dim as usize])?;
        if index.dim() > 1 {
            let message =
                format!("`index_select` needs a row of indices, found {:?}", index.size());
            return Err(Error::new(Code::Shape, message).into());
        }
        check::op("index_select", &[t], || t.f_index_select(dim, &index))
    }
}

fn gather(t: &Tensor, dim: i64, index: &Tensor) -> ScriptResult<Handle> {
    let dim = real_dim("gather", t, dim)?;
    let (size, asked) = (t.size(), index.size());
    let fits = size.len() == asked.len()
        && size.iter().zip(&asked).enumerate().all(|(i, (a, b))| i as i64 == dim || b <= a);
    if !fits {
        let message = format!(
            "`gather` along dimension {dim} of shape {size:?} cannot take indices of shape {asked:?}"
        );
        return Err(Error::new(Code::Shape, message)
            .hint("indices have as many dimensions, of at most the same sizes elsewhere")
            .into());
    }
    check::indices("gather", "indices", index, size[dim as usize])?;
    check::op("gather", &[t, index], || t.f_gather(dim, index, false))
}

/// Indices of several dimensions, in order.
#[derive(Debug, Clone)]
pub struct Indices(Array);

/// The index of one dimension.
enum DimensionIndex {
    One(i64),
    Slice { start: Option<i64>, end: Option<i64>, step: i64 },
    Tensor(Handle),
    Rest,
    New,
}

const WHOLE: DimensionIndex = DimensionIndex::Slice { start: None, end: None, step: 1 };

/// The steps of an index, one for each dimension that it names.
fn parse(index: &Dynamic) -> Result<Vec<DimensionIndex>> {
    if let Ok(text) = index.as_immutable_string_ref() {
        return parse_text(&text);
    }
    match index.read_lock::<Indices>() {
        Some(indices) => indices.0.iter().map(parse_one).collect(),
        None => Ok(vec![parse_one(index)?]),
    }
}

fn parse_one(item: &Dynamic) -> Result<DimensionIndex> {
    if let Ok(int) = item.as_int() {
        return Ok(DimensionIndex::One(int));
    }
    if item.is_unit() {
        return Ok(DimensionIndex::New);
    }
    if let Some(range) = item.clone().try_cast::<Range<i64>>() {
        return Ok(DimensionIndex::Slice {
            start: Some(range.start),
            end: Some(range.end),
            step: 1,
        });
    }
    if let Some(range) = item.clone().try_cast::<RangeInclusive<i64>>() {
        let end = range.end().checked_add(1).filter(|end| *end != 0);
        return Ok(DimensionIndex::Slice { start: Some(*range.start()), end, step: 1 });
    }
    if let Some(handle) = item.clone().try_cast::<Handle>() {
        return Ok(DimensionIndex::Tensor(handle));
    }
    if let Ok(text) = item.as_immutable_string_ref() {
        return parse_word(text.trim(), &text);
    }
    if item.is_array() {
        return listed(item);
    }
    let found = describe(item);
    Err(Error::new(Code::WrongType, format!("a tensor cannot be indexed with {found}"))
        .hint("with an int, a range, an array or a tensor of them, text such as \":, -1\""))
}

/// An array of indices, or of true and false: as in PyTorch it is for one dimension.
fn listed(items: &Dynamic) -> Result<DimensionIndex> {
    let wrong = || {
        let message = "an array that indexes a tensor has ints, or true and false";
        Error::new(Code::WrongType, message).hint("indices of several dimensions: t[0, 1..3]")
    };
    let Nested { shape, ints, has_float, has_int, .. } =
        Nested::read(items).map_err(|_| wrong())?;
    if has_float {
        return Err(wrong());
    }
    let kind = if has_int || ints.is_empty() { Kind::Int64 } else { Kind::Bool };
    let tensor =
        check::run("[]", &[], || Tensor::f_from_slice(&ints)?.f_reshape(&shape)?.f_to_kind(kind))?;
    Ok(DimensionIndex::Tensor(Handle::new(tensor)))
}

/// The text between Python's brackets: `1:3, ..., -1`.
fn parse_text(text: &str) -> Result<Vec<DimensionIndex>> {
    if rhai::is_valid_identifier(text) && text != "None" {
        let message = format!("property `{text}` does not exist on a value of type Tensor");
        let error = Error::new(Code::UnknownFunction, message);
        return Err(match nearest(text, PROPERTIES.iter().copied()) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint(format!("if it is a function, write .{text}()")),
        });
    }
    text.split(',').map(|word| parse_word(word.trim(), text)).collect()
}

fn parse_word(word: &str, text: &str) -> Result<DimensionIndex> {
    let wrong = || {
        Error::new(Code::BadValue, format!("`{text}` is no index of a tensor"))
            .hint("write it as between Python's brackets: \"0\", \":, 1:3\", \"..., -1\"")
    };
    match word {
        "..." => return Ok(DimensionIndex::Rest),
        "None" => return Ok(DimensionIndex::New),
        _ => {}
    }
    if !word.contains(':') {
        return word.parse().map(DimensionIndex::One).map_err(|_| wrong());
    }
    let parts: Vec<&str> = word.split(':').map(str::trim).collect();
    let number = |i: usize| match parts.get(i).copied().unwrap_or("") {
        "" => Ok(None),
        part => part.parse::<i64>().map(Some).map_err(|_| wrong()),
    };
    let (start, end, step) = (number(0)?, number(1)?, number(2)?.unwrap_or(1));
    if parts.len() > 3 || step < 1 {
        return Err(wrong().hint("a step is 1 or more"));
    }
    Ok(DimensionIndex::Slice { start, end, step })
}

/// A view, and the tensors that still index it, one for each of its dimensions.
struct IndexedView {
    view: Tensor,
    by: Vec<Option<Tensor>>,
}

/// Takes the views that an index names.
fn part(t: &Tensor, index: &Dynamic) -> Result<IndexedView> {
    let mut steps = parse(index)?;
    let used = |at: &DimensionIndex| match at {
        DimensionIndex::One(_) | DimensionIndex::Slice { .. } => 1,
        DimensionIndex::Tensor(mask) if mask.0.kind() == Kind::Bool => mask.0.dim().max(1),
        DimensionIndex::Tensor(_) => 1,
        DimensionIndex::Rest | DimensionIndex::New => 0,
    };
    let named: usize = steps.iter().map(used).sum();
    if named > t.dim() {
        bail!(Code::Shape, "{named} indices are too many for shape {:?}", t.size());
    }
    if let Some(rest) = steps.iter().position(|at| matches!(at, DimensionIndex::Rest)) {
        let whole = (named..t.dim()).map(|_| WHOLE);
        steps.splice(rest..=rest, whole);
    }
    let (mut view, mut dim, mut by) = (t.shallow_clone(), 0i64, Vec::new());
    for at in steps {
        match at {
            DimensionIndex::One(i) => {
                let i = check::index("[]", view.size()[dim as usize], dim, i)?;
                view = guard("[]", || Ok(view.f_select(dim, i)?))?;
            }
            DimensionIndex::Slice { start, end, step } => {
                view = guard("[]", || Ok(view.f_slice(dim, start, end, step)?))?;
                by.push(None);
                dim += 1;
            }
            DimensionIndex::New => {
                view = guard("[]", || Ok(view.f_unsqueeze(dim)?))?;
                by.push(None);
                dim += 1;
            }
            DimensionIndex::Rest => bail!(Code::BadValue, "an index has only one \"...\""),
            DimensionIndex::Tensor(index) => {
                let index = fitting(&view, dim, &index.0)?;
                dim += if index.kind() == Kind::Bool { index.dim() as i64 } else { 1 };
                by.push(Some(index));
            }
        }
    }
    if by.iter().all(Option::is_none) {
        by.clear();
    }
    Ok(IndexedView { view, by })
}

/// A tensor that indexes the dimension `dim` of a view.
fn fitting(view: &Tensor, dim: i64, index: &Tensor) -> Result<Tensor> {
    let sizes = view.size();
    let at = dim as usize;
    if index.kind() == Kind::Bool {
        let size = index.size();
        if size.is_empty() || sizes.get(at..at + size.len()) != Some(size.as_slice()) {
            bail!(Code::Shape, "a mask of shape {size:?} does not fit shape {sizes:?}");
        }
        return Ok(index.shallow_clone());
    }
    if index.kind() != Kind::Int64 {
        let found = dtype_name(index.kind());
        bail!(Code::WrongType, "a tensor is indexed with int64 or bool, found {found}");
    }
    let size = sizes[at];
    check::indices_between("[]", "indices", index, (-size, size - 1))?;
    guard("[]", || {
        let negative = index.f_lt(0)?;
        Ok(index.f_add_scalar(size)?.f_where_self(&negative, index)?)
    })
}

fn get(tensor: &Handle, index: &Dynamic) -> Result<Handle> {
    let IndexedView { view, by } = part(&tensor.0, index)?;
    if by.is_empty() {
        return Ok(Handle::new(view));
    }
    let picked = check::run("[]", &[&view], || view.f_index(&by))?;
    Ok(Handle::new(picked))
}

/// Writes a part.
///
/// Rhai also does so after any method of a part or of a property was called: `w.grad.sum()` ends in
/// an assignment of the gradient, or of `()` where the method took it. Nothing is then changed.
fn set(tensor: &Handle, index: &Dynamic, value: &Dynamic) -> Result<()> {
    if value.is_unit() {
        return Ok(());
    }
    if let Ok(name) = index.as_immutable_string_ref()
        && PROPERTIES.contains(&name.as_str())
    {
        return keep_property(tensor, &name, value);
    }
    let IndexedView { mut view, by } = part(&tensor.0, index)?;
    let Some(value) = Operand::read(value) else {
        let found = describe(value);
        bail!(Code::WrongType, "a tensor's part is a tensor or a number, found {found}");
    };
    if let Operand::Tensor(same) = &value
        && by.is_empty()
        && same.0.data_ptr() == view.data_ptr()
        && same.0.size() == view.size()
        && same.0.stride() == view.stride()
    {
        return Ok(());
    }
    let value = value.into_tensor(&view)?;
    if let Err(fault) = check::may_change("[] =", &tensor.0) {
        let picked = match by.is_empty() {
            true => view,
            false => check::run("[] =", &[&view], || view.f_index(&by))?,
        };
        let is_same = picked.size() == value.size()
            && check::run("[] =", &[&picked, &value], || picked.f_equal(&value))?;
        return if is_same { Ok(()) } else { Err(fault) };
    }
    if by.is_empty() {
        into_shape("[] =", &value, &view)?;
        return check::run("[] =", &[&tensor.0, &value], || view.f_copy_(&value));
    }
    let picked = check::run("[] =", &[&view], || view.f_index(&by))?;
    into_shape("[] =", &value, &picked)?;
    let _same = check::run("[] =", &[&tensor.0, &value], || {
        view.f_index_put_(&by, &value.f_to_kind(view.kind())?, false)
    })?;
    Ok(())
}

/// Refuses to set a property that has no setter to anything but what it is.
fn keep_property(tensor: &Handle, name: &str, value: &Dynamic) -> Result<()> {
    let t = &tensor.0;
    let is_kept = match value.clone().try_cast::<Handle>() {
        Some(value) => guard(name, || {
            let same = if name == "grad" { t.f_grad()? } else { t.shallow_clone() };
            Ok(same.defined() && same.data_ptr() == value.0.data_ptr())
        })?,
        None => name != "grad" && name != "T",
    };
    let is_kept = is_kept
        && match name {
            "shape" => value.is_array() && ints("shape", value)? == t.size(),
            "dtype" => value.to_string() == dtype_name(t.kind()),
            "device" => value.to_string() == device_name(t.device()),
            "ndim" => value.as_int() == Ok(t.dim() as i64),
            _ => true,
        };
    if is_kept {
        return Ok(());
    }
    let message = format!("property `{name}` cannot be set on a value of type Tensor");
    let error = Error::new(Code::UnknownFunction, message);
    Err(if name == "grad" { error.hint("zero_grad() sets it to zero") } else { error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_as_between_pythons_brackets() {
        let size = |index: &str| {
            let t = Tensor::arange(24, (Kind::Int64, crate::tensor::Device::Cpu)).view([2, 3, 4]);
            get(&Handle::new(t), &index.into()).map(|part| part.0.size())
        };
        assert_eq!(size("0").unwrap(), [3, 4]);
        assert_eq!(size(":, 1:, -1").unwrap(), [2, 2]);
        assert_eq!(size("..., ::2").unwrap(), [2, 3, 2]);
        assert_eq!(size("None, 1").unwrap(), [1, 3, 4]);
        assert_eq!(size("5").unwrap_err().code(), Code::BadValue);
        assert_eq!(size("0, 0, 0, 0").unwrap_err().code(), Code::Shape);
        assert_eq!(size("0:1:0").unwrap_err().code(), Code::BadValue);
        let e = size("shpe").unwrap_err();
        assert_eq!(e.hints(), ["did you mean `shape`?"]);
    }
}
