//! The rows of a pass of one token a text, and what the layers share of such a pass: on a GPU each small
//! tensor that a layer made for itself would be a launch or more for every token.

use std::{cell::RefCell, rc::Rc};

use crate::{
    bridge::attention::SlotLengths,
    error::Result,
    tensor::{Device, Kind, Tensor},
};

/// The rows of a pass of one token a text.
#[derive(Debug)]
pub struct DecodeRows {
    /// The tokens of each text before this one.
    past: Vec<i64>,
    /// The same on the device, int64 `[B]`.
    positions: Tensor,
    /// By kv heads and capacity.
    lengths: Shared<(i64, i64), SlotLengths>,
    /// By capacity.
    places: Shared<i64, [Tensor; 2]>,
    /// By capacity and format.
    hidden: Shared<(i64, Kind), Tensor>,
    /// By the whole table, which stays as long as its rows.
    angles: Shared<Identity, Tensor>,
    /// By what it depends on.
    biases: Shared<[i64; 3], Tensor>,
}

/// Values that the first layer makes that needs them.
#[derive(Debug)]
struct Shared<K, T>(RefCell<Vec<(K, Rc<T>)>>);

impl<K, T> Default for Shared<K, T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: PartialEq, T> Shared<K, T> {
    fn get(&self, key: K, make: impl FnOnce() -> Result<T>) -> Result<Rc<T>> {
        if let Some((_, made)) = self.0.borrow().iter().find(|(known, _)| *known == key) {
            return Ok(Rc::clone(made));
        }
        let made = Rc::new(make()?);
        self.0.borrow_mut().push((key, Rc::clone(&made)));
        Ok(made)
    }
}

/// A tensor that is itself alone.
#[derive(Debug)]
struct Identity(Tensor);

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.0.data_ptr() == other.0.data_ptr()
    }
}

impl DecodeRows {
    /// One more token for texts that have so many.
    pub fn new(past: Vec<i64>, device: Device) -> Result<Self> {
        let positions = Tensor::f_from_slice(&past)?.f_to_device(device)?;
        Ok(Self {
            past,
            positions,
            lengths: Shared::default(),
            places: Shared::default(),
            hidden: Shared::default(),
            angles: Shared::default(),
            biases: Shared::default(),
        })
    }

    /// The tokens of each text before this one.
    pub fn past(&self) -> &[i64] {
        &self.past
    }

    /// The position of each row's token, int64 `[B]`.
    pub fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// The most tokens that a row sees, its own included.
    pub fn longest(&self) -> i64 {
        self.past.iter().max().map_or(1, |past| past + 1)
    }

    /// The rows of a table of all positions, `[positions, 1, ..]`, that are the texts': `[B, 1, 1, ..]`.
    pub(crate) fn of_table(&self, table: &Tensor) -> Result<Rc<Tensor>> {
        let rows = || Ok(table.f_index_select(0, &self.positions)?.f_unsqueeze(1)?);
        self.angles.get(Identity(table.shallow_clone()), rows)
    }

    /// A bias of the scores that depends on these numbers alone, and is the same in every layer.
    pub(crate) fn bias(&self, of: [i64; 3], make: impl FnOnce() -> Tensor) -> Result<Rc<Tensor>> {
        self.biases.get(of, || Ok(make()))
    }

    /// How many keys each row sees, its own included, in each kv head of caches of `capacity` tokens.
    pub(super) fn lengths(&self, kv_heads: i64, capacity: i64) -> Result<Rc<SlotLengths>> {
        let rows = (&self.positions, self.longest());
        let make = || SlotLengths::of_next_tokens(rows, kv_heads, capacity);
        self.lengths.get((kv_heads, capacity), make)
    }

    /// The slot of each row, and the place of its token in a slot of `capacity` tokens, int64 `[B]` each.
    pub(super) fn places(&self, capacity: i64) -> Result<Rc<[Tensor; 2]>> {
        let make = || {
            let options = (Kind::Int64, self.positions.device());
            let slots = Tensor::f_arange(self.past.len() as i64, options)?;
            Ok([slots, self.positions.f_remainder(capacity)?])
        };
        self.places.get(capacity, make)
    }

    /// The keys that rows do not see among those that the one with the most does, in slots of `capacity`
    /// tokens: 0 and minus infinity, `[B, 1, 1, T]`. `None` where every row sees all of them.
    pub(super) fn hidden(&self, capacity: i64, kind: Kind) -> Result<Option<Rc<Tensor>>> {
        let longest = self.longest().min(capacity);
        if self.past.iter().all(|past| past + 1 >= longest) {
            return Ok(None);
        }
        let make = || {
            let device = self.positions.device();
            let keys = Tensor::f_arange(longest, (Kind::Int64, device))?;
            let hidden = keys.f_gt_tensor(&self.positions.f_view([-1i64, 1, 1, 1])?)?;
            let none = Tensor::f_zeros([1], (kind, device))?;
            Ok(none.f_masked_fill(&hidden, f64::NEG_INFINITY)?)
        };
        self.hidden.get((capacity, kind), make).map(Some)
    }
}
