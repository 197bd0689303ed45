//! A trace of a few optimizer steps, for chrome://tracing and Perfetto.
//!
//! The first step warms up: CUDA loads kernels and libtorch's allocator fills. The next ones are
//! traced, each operation with its shapes and, on CUDA, its kernels; forward passes, layers, backward
//! passes and steps stand in it as ranges by their names. Then the file is written, and training goes
//! on at its own speed. PyTorch's users know this as `torch.profiler` with
//! `schedule(wait=0, warmup=1, active=3)`.

use super::{Engine, Observer};
use crate::{
    bridge::trace,
    error::{Code, Error, Result},
    fs::{self, Place},
    tensor::{Device, guard, synchronize},
};

/// Steps that are traced.
const TRACED: u64 = 3;

/// Traces an engine that it observes from before its first step.
pub struct Tracer {
    file: Place,
    device: Device,
    /// Steps seen.
    steps: u64,
    runs: bool,
    show: Box<dyn Fn(&str)>,
}

impl Tracer {
    /// A tracer of what runs on `device`, into `file`. Its lines go to `show`.
    pub fn new(file: impl Into<Place>, device: Device, show: Box<dyn Fn(&str)>) -> Result<Self> {
        let file = file.into();
        file.create_parents()?;
        let tracer = Self { file, device, steps: 0, runs: false, show };
        trace::prepare(tracer.with_cuda())?;
        Ok(tracer)
    }

    fn with_cuda(&self) -> bool {
        matches!(self.device, Device::Cuda(_))
    }

    /// Ends the trace; gives it as it is to be written.
    fn stop(&mut self) -> Result<Vec<u8>> {
        self.runs = false;
        let failed = |e| Error::new(Code::Io, "cannot make a temporary directory").caused_by(e);
        let dir = tempfile::tempdir().map_err(failed)?;
        let written = dir.path().join("trace.json");
        // The work that the device still has belongs to the last step.
        let waited = guard("trace", || {
            synchronize(self.device);
            Ok(())
        });
        trace::stop(&written)?;
        waited?;
        let text = fs::read(Place::unguarded(&written))?;
        // The profiler does not tell of a full disk.
        if !text.trim_ascii_end().ends_with(b"}") {
            let message = format!("the trace does not fit into {}", dir.path().display());
            return Err(
                Error::new(Code::DiskFull, message).hint("TMPDIR names a directory with more room")
            );
        }
        Ok(text)
    }

    /// Ends the trace and writes it.
    fn write(&mut self) -> Result<()> {
        let text = self.stop()?;
        fs::write_atomic(&self.file, &text)?;
        let (steps, file) = (self.steps - 1, self.file.display());
        (self.show)(&format!(
            "traced {steps} {} into {file}, for https://ui.perfetto.dev or chrome://tracing",
            if steps == 1 { "step" } else { "steps" }
        ));
        Ok(())
    }
}

impl Observer for Tracer {
    fn on_step(&mut self, _engine: &Engine) -> Result<()> {
        self.steps += 1;
        match self.steps {
            1 => {
                trace::start(self.with_cuda())?;
                self.runs = true;
                Ok(())
            }
            steps if steps == 1 + TRACED => self.write(),
            _ => Ok(()),
        }
    }
}

/// A training that ends early leaves the steps that it did.
impl Drop for Tracer {
    fn drop(&mut self) {
        if self.steps < 2 {
            (self.show)("no step was traced: the first one warms up, and there was no second");
        }
        if !self.runs {
            return;
        }
        let ended = if self.steps < 2 { self.stop().map(drop) } else { self.write() };
        if let Err(e) = ended {
            (self.show)(&format!("the trace is lost: {e}"));
        }
    }
}
