//! The time and the memory that one pass over the rows of a file takes.
//!
//!     cargo bench --bench read_data -- FILE...
//!
//! A line of JSON a file: rows, bytes of the column `text`, seconds, and the most memory of the process.
#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::{error::Error, time::Instant};

use arrow::{array::Array, compute::cast, datatypes::DataType};
use dsr::data::{DataSource, Dataset, OpenOptions};

fn main() -> Result<(), Box<dyn Error>> {
    for file in std::env::args().skip(1).filter(|argument| !argument.starts_with("--")) {
        let start = Instant::now();
        let dataset = Dataset::open(DataSource::unguarded(&file), &OpenOptions::default())?;
        let (mut rows, mut bytes) = (0, 0);
        for batch in dataset.batches()? {
            let batch = batch?;
            rows += batch.num_rows();
            let text = batch.column_by_name("text").ok_or("no column text")?;
            let text = cast(text, &DataType::LargeUtf8)?;
            let text = text.as_any().downcast_ref::<arrow::array::LargeStringArray>();
            bytes += text.ok_or("no text")?.iter().flatten().map(str::len).sum::<usize>();
        }
        let seconds = start.elapsed().as_secs_f64();
        let mib = peak_kib()? / 1024;
        println!(
            r#"{{"file": "{file}", "rows": {rows}, "bytes": {bytes}, "seconds": {seconds:.3}, "peak_mib": {mib}}}"#
        );
    }
    Ok(())
}

/// The most memory that the process has had, as Linux counts it.
fn peak_kib() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
