//! The device that a command computes on.

use clap::Args;

use crate::{error::Result, script::Host, tensor::DeviceChoice};

/// The device that a command computes on.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct DeviceArgs {
    /// Compute on this device: cpu, cuda or cuda:N [default: a GPU where there is one].
    #[arg(long, value_name = "DEVICE", env = DEVICE_VARIABLE, hide_env_values = true, value_parser = device)]
    device: Option<DeviceChoice>,
}

/// Says the device where `--device` does not.
pub(super) const DEVICE_VARIABLE: &str = "DSR_DEVICE";

impl DeviceArgs {
    /// The choice.
    pub(super) fn choice(self) -> DeviceChoice {
        self.device.unwrap_or_default()
    }

    /// Gives `host` the device, which must be there.
    pub(super) fn give(self, host: &mut Host) -> Result<()> {
        host.ranks.device = self.choice();
        host.ranks.check_device(&host.workspace.rights.env)
    }
}

/// A variable that is set to nothing says nothing.
fn device(text: &str) -> Result<DeviceChoice, String> {
    if text.is_empty() { Ok(DeviceChoice::Best) } else { text.parse() }
}
