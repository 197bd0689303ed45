//! The three batch sizes of DeepSpeed, of which any two give the third:
//! `train_batch_size = micro_batch_size * gradient_accumulation_steps * world_size`.
//!
//! A micro batch may be `"auto"`: the largest that fits, within what the other two leave open.

use super::options::{AUTO, Kind, OptionValue, Value, Wrong, option_table};
use crate::error::{Code, Error, Result};

option_table! {
    /// The batch sizes as they were given.
    #[derive(Debug, Clone, Copy)]
    pub struct BatchSizes {
        /// rows in an optimizer step, over all ranks. Any two of the three sizes give the third
        #[option(optional, range = 1.., deepspeed = "train_batch_size")]
        pub train_batch_size: Option<usize>,
        /// rows in a batch of one rank, 1 or more; "auto" is the largest power of two that fits the memory, at
        /// most 1024, which `engine.micro_batch_size` then says
        #[option(optional, deepspeed = "train_micro_batch_size_per_gpu")]
        pub micro_batch_size: Option<MicroBatchSize>,
        /// micro batches in an optimizer step; 1 where it does not follow
        #[option(optional, range = 1.., deepspeed = "gradient_accumulation_steps")]
        pub gradient_accumulation_steps: Option<usize>,
    }
}

/// Rows of a micro batch as an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MicroBatchSize {
    /// So many.
    Rows(usize),
    /// As many as fit.
    Auto,
}

impl Default for MicroBatchSize {
    fn default() -> Self {
        Self::Rows(1)
    }
}

impl OptionValue for MicroBatchSize {
    fn read(value: &Value) -> std::result::Result<Self, Wrong> {
        let must = "a whole number, 1 or more, or \"auto\"";
        match value {
            Value::Text(text) if text.eq_ignore_ascii_case(AUTO) => Ok(Self::Auto),
            Value::Text(_) => Err(Wrong::no_number(must, value)),
            _ => match usize::read(value)? {
                0 => Err(Wrong::value("1 or more", value)),
                rows => Ok(Self::Rows(rows)),
            },
        }
    }

    fn kind() -> Kind {
        Kind::Or(Box::new(Kind::Whole), Box::new(Kind::Words(vec![AUTO])))
    }
}

/// The sizes that an engine trains with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResolvedBatch {
    /// Rows in a batch of one rank; 1 while it is [open](BatchChoice::Open).
    pub micro_batch_size: usize,
    /// Micro batches in an optimizer step; 1 while that is open.
    pub gradient_accumulation_steps: usize,
    /// How they came about.
    pub choice: BatchChoice,
}

/// How the size of a micro batch came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchChoice {
    /// It was given, or followed from the sizes that were.
    Given,
    /// It is still to be found, beside these.
    Open(OpenBatch),
    /// It was found.
    Fitted(FittedBatch),
}

/// A micro batch that was chosen by the memory that a rank needs with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FittedBatch {
    /// The sizes beside it.
    pub open: OpenBatch,
    /// Tokens of a row, at most.
    pub tokens: u64,
    /// Bytes that the training needs.
    pub needs: u64,
    /// Bytes that are there for it.
    pub there: u64,
    /// The next larger size that was tried, with the bytes that it would need.
    pub next: Option<(usize, u64)>,
    /// Whether it is that of a checkpoint, though a larger one would fit.
    pub is_kept: bool,
}

/// The sizes that are given beside a micro batch that is to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenBatch {
    train_batch_size: Option<usize>,
    gradient_accumulation_steps: Option<usize>,
    replicas: usize,
}

/// No micro batch that is chosen is larger: the limit of DeepSpeed's autotuner.
const MOST_AUTO_ROWS: usize = 1024;

impl OpenBatch {
    /// The micro batches to choose among, each with its `gradient_accumulation_steps`, the largest
    /// first.
    pub fn candidates(&self) -> Vec<(usize, usize)> {
        let Self { train_batch_size, gradient_accumulation_steps, replicas } = *self;
        let powers =
            || std::iter::successors(Some(MOST_AUTO_ROWS), |rows| (*rows > 1).then_some(rows / 2));
        match (train_batch_size, gradient_accumulation_steps) {
            (Some(train), Some(accumulation)) => {
                vec![(train / replicas / accumulation, accumulation)]
            }
            (Some(train), None) => {
                let rows = train / replicas;
                let fits = powers().filter(|micro| rows.is_multiple_of(*micro));
                fits.map(|micro| (micro, rows / micro)).collect()
            }
            (None, accumulation) => {
                powers().map(|rows| (rows, accumulation.unwrap_or(1))).collect()
            }
        }
    }

    /// The `gradient_accumulation_steps` that go with a micro batch of `rows`, where these can be chosen.
    pub fn with(&self, rows: usize) -> Option<usize> {
        let found = self.candidates().into_iter().find(|(micro, _)| *micro == rows);
        found.map(|(_, accumulation)| accumulation)
    }

    /// The advice where not even the smallest of them fits.
    pub fn remedy(&self) -> &'static str {
        match (self.train_batch_size, self.gradient_accumulation_steps) {
            (Some(_), Some(_)) => {
                "leave out gradient_accumulation_steps, which then follows from the micro batch that fits"
            }
            _ => "activation_checkpointing, a ZeRO stage, offload, or shorter rows need less",
        }
    }
}

impl BatchSizes {
    /// The sizes for this many ranks; without a word of accumulation there is none.
    ///
    /// # Errors
    /// [`Code::Missing`] where neither batch size is given, [`Code::BadValue`] where they contradict
    /// each other or do not divide; one sentence with the arithmetic.
    pub fn resolve(self, world_size: usize) -> Result<ResolvedBatch> {
        let given = match self.micro_batch_size {
            None => self.numbers(None, world_size)?,
            Some(MicroBatchSize::Rows(rows)) => self.numbers(Some(rows), world_size)?,
            Some(MicroBatchSize::Auto) => return self.open(world_size),
        };
        let (micro_batch_size, gradient_accumulation_steps) = given;
        Ok(ResolvedBatch {
            micro_batch_size,
            gradient_accumulation_steps,
            choice: BatchChoice::Given,
        })
    }

    /// The sizes where that of a micro batch is to fit.
    fn open(self, replicas: usize) -> Result<ResolvedBatch> {
        let Self { train_batch_size, gradient_accumulation_steps, .. } = self;
        if let Some(train) = train_batch_size {
            let accumulation = gradient_accumulation_steps.unwrap_or(1);
            divide(train, [("gradient_accumulation_steps", accumulation), ranks(replicas)])?;
        }
        let open = OpenBatch { train_batch_size, gradient_accumulation_steps, replicas };
        Ok(ResolvedBatch {
            micro_batch_size: 1,
            gradient_accumulation_steps: gradient_accumulation_steps.unwrap_or(1),
            choice: BatchChoice::Open(open),
        })
    }

    /// `micro_batch_size` and `gradient_accumulation_steps`.
    fn numbers(self, micro_batch_size: Option<usize>, world_size: usize) -> Result<(usize, usize)> {
        let Self { train_batch_size, gradient_accumulation_steps, .. } = self;
        match (train_batch_size, micro_batch_size, gradient_accumulation_steps) {
            (None, None, _) => Err(Error::new(
                Code::Missing,
                "`micro_batch_size` or `train_batch_size` is required and missing",
            )
            .option("micro_batch_size")),
            (None, Some(micro), accumulation) => Ok((micro, accumulation.unwrap_or(1))),
            (Some(train), None, accumulation) => {
                let accumulation = accumulation.unwrap_or(1);
                let parts = [("gradient_accumulation_steps", accumulation), ranks(world_size)];
                Ok((divide(train, parts)?, accumulation))
            }
            (Some(train), Some(micro), None) => {
                let parts = [("micro_batch_size", micro), ranks(world_size)];
                Ok((micro, divide(train, parts)?))
            }
            (Some(train), Some(micro), Some(accumulation)) => {
                let product = micro.saturating_mul(accumulation).saturating_mul(world_size);
                if train == product {
                    return Ok((micro, accumulation));
                }
                Err(contradiction(format!(
                    "train_batch_size {train} is not micro_batch_size {micro} x \
                     gradient_accumulation_steps {accumulation} x world_size {world_size} = {product}"
                )))
            }
        }
    }
}

fn ranks(world_size: usize) -> (&'static str, usize) {
    ("world_size", world_size)
}

/// `train` divided by both parts.
fn divide(train: usize, parts: [(&str, usize); 2]) -> Result<usize> {
    let [(a_name, a), (b_name, b)] = parts;
    let product = a.saturating_mul(b);
    if train.is_multiple_of(product) && train > 0 {
        return Ok(train / product);
    }
    Err(contradiction(format!(
        "train_batch_size {train} is not a multiple of {a_name} {a} x {b_name} {b} = {product}"
    )))
}

fn contradiction(message: String) -> Error {
    Error::new(Code::BadValue, message).option("train_batch_size")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(sizes: [usize; 3], world_size: usize) -> Result<(usize, usize)> {
        let [train_batch_size, micro_batch_size, gradient_accumulation_steps] =
            sizes.map(|size| (size > 0).then_some(size));
        let micro_batch_size = micro_batch_size.map(MicroBatchSize::Rows);
        let sizes = BatchSizes { train_batch_size, micro_batch_size, gradient_accumulation_steps };
        let found = sizes.resolve(world_size)?;
        Ok((found.micro_batch_size, found.gradient_accumulation_steps))
    }

    fn candidates(
        train_batch_size: Option<usize>,
        gradient_accumulation_steps: Option<usize>,
    ) -> Result<Vec<(usize, usize)>> {
        let micro_batch_size = Some(MicroBatchSize::Auto);
        let sizes = BatchSizes { train_batch_size, micro_batch_size, gradient_accumulation_steps };
        match sizes.resolve(2)?.choice {
            BatchChoice::Open(open) => Ok(open.candidates()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_micro_batch_that_is_to_fit_divides_what_was_given() {
        let all = candidates(None, None).unwrap();
        assert_eq!((all[0], all[10], all.len()), ((1024, 1), (1, 1), 11));
        assert_eq!(candidates(None, Some(4)).unwrap()[1], (512, 4));
        assert_eq!(candidates(Some(24), None).unwrap(), [(4, 3), (2, 6), (1, 12)]);
        assert_eq!(candidates(Some(24), Some(2)).unwrap(), [(6, 2)]);
        let e = candidates(Some(25), None).unwrap_err();
        assert!(e.message().contains("25 is not a multiple of"), "{}", e.message());
    }

    #[test]
    fn a_micro_batch_is_a_number_or_auto() {
        let read = |value: Value| MicroBatchSize::read(&value);
        assert_eq!(read(Value::Text("auto".into())).unwrap(), MicroBatchSize::Auto);
        assert_eq!(read(Value::Int(3)).unwrap(), MicroBatchSize::Rows(3));
        let message = |value| read(value).unwrap_err().into_error("m").message().to_owned();
        assert_eq!(message(Value::Int(0)), "`m` must be 1 or more, found 0");
        let text = message(Value::Text("4".into()));
        let must = "`m` must be a whole number, 1 or more, or \"auto\", found string \"4\"";
        assert_eq!(text, must);
    }

    #[test]
    fn any_two_give_the_third() {
        for sizes in [[32, 4, 4], [32, 4, 0], [32, 0, 4], [0, 4, 4]] {
            assert_eq!(resolve(sizes, 2).unwrap(), (4, 4), "{sizes:?}");
        }
        assert_eq!(resolve([32, 0, 0], 2).unwrap(), (16, 1));
        assert_eq!(resolve([0, 4, 0], 2).unwrap(), (4, 1));
    }

    #[test]
    fn a_contradiction_is_a_sentence_with_the_arithmetic() {
        let message = |sizes, world| resolve(sizes, world).unwrap_err().message().to_owned();
        assert_eq!(
            message([32, 4, 3], 2),
            "train_batch_size 32 is not micro_batch_size 4 x gradient_accumulation_steps 3 x \
             world_size 2 = 24"
        );
        assert_eq!(
            message([30, 4, 0], 2),
            "train_batch_size 30 is not a multiple of micro_batch_size 4 x world_size 2 = 8"
        );
        assert!(message([0, 0, 4], 2).contains("is required and missing"));
    }
}
