//! Where training state is kept that is not with the model (ZeRO-Offload, Ren et al. 2021), and for
//! which share of the parameters (DeepSpeed's Twin-Flow, ZeRO-Offload++).

use super::options::{Given, Kind, OptionTable, OptionType, option_table, option_words};

option_words! {
    /// Where a part of the training state is kept.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum OffloadDevice {
        /// Where the model is.
        None = "none",
        /// In host memory; where the model is there too, this is no other place.
        Cpu = "cpu",
        /// In a file under [`ZeroConfig::nvme_path`](super::ZeroConfig::nvme_path).
        Nvme = "nvme",
    }
}

/// The offload of master weights and optimizer state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerOffload {
    /// Where they go.
    pub device: OffloadDevice,
    /// The share of the parameters whose state goes there.
    pub ratio: f64,
}

option_table! {
    /// The offload of the optimizer where it is a map.
    #[derive(Debug)]
    struct OptimizerOffloadOptions {
        /// where they are, and the optimizer steps
        #[option(required)]
        pub device: Option<OffloadDevice>,
        /// the share of the parameters for which this holds, layer by layer from the last one on; the others'
        /// state stays with the model, which updates them at the same time (DeepSpeed's Twin-Flow)
        #[option(default = 1.0, range = 0.0..=1.0)]
        pub ratio: f64,
    }
}

impl OptimizerOffload {
    /// Nothing goes.
    pub const NONE: Self = Self { device: OffloadDevice::None, ratio: 1.0 };

    /// For each of these numbers of parameters, in the order of the model, whether its state goes: as many stay as there is
    /// room for beside the ratio, the first ones first, as in DeepSpeed.
    pub fn goes(&self, numels: &[u64]) -> Vec<bool> {
        if self.device == OffloadDevice::None {
            return vec![false; numels.len()];
        }
        let all = numels.iter().sum::<u64>() as f64;
        let (room, mut staying) = (all - self.ratio * all, 0);
        let goes = |&numel: &u64| {
            let stays = (staying + numel) as f64 <= room;
            staying += if stays { numel } else { 0 };
            !stays
        };
        numels.iter().map(goes).collect()
    }
}

impl Default for OptimizerOffload {
    fn default() -> Self {
        Self::NONE
    }
}

/// All of it.
impl From<OffloadDevice> for OptimizerOffload {
    fn from(device: OffloadDevice) -> Self {
        Self { device, ..Self::NONE }
    }
}

/// A word, or a map.
impl OptionType for OptimizerOffload {
    fn take(o: &mut super::options::Options<'_>, key: &'static str) -> Given<Self> {
        if !o.is_map(key) {
            return OffloadDevice::take(o, key).map(Self::from);
        }
        let map = o.map(key, OptimizerOffloadOptions::read);
        let read =
            |OptimizerOffloadOptions { device, ratio }| Some(Self { device: device?, ratio });
        map.and_then(read).map_or(Given::Faulty, Given::Value)
    }

    fn kind() -> Kind {
        let map = Kind::Map(const { &[OptimizerOffloadOptions::ROWS] });
        Kind::Or(Box::new(<OffloadDevice as OptionType>::kind()), Box::new(map))
    }

    fn shown(&self) -> Option<String> {
        OptionType::shown(&self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goes(ratio: f64, numels: &[u64]) -> Vec<u8> {
        let offload = OptimizerOffload { device: OffloadDevice::Cpu, ratio };
        offload.goes(numels).into_iter().map(u8::from).collect()
    }

    #[test]
    fn the_first_ones_stay_as_long_as_there_is_room() {
        let equal = [7; 10];
        assert_eq!(goes(1.0, &equal), [1; 10]);
        assert_eq!(goes(0.0, &equal), [0; 10]);
        assert_eq!(goes(0.4, &equal), [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
        // Tenths are not exact in binary.
        for tenths in 0..=10 {
            let all = goes(f64::from(tenths) / 10.0, &equal);
            assert_eq!(all.iter().map(|&goes| u32::from(goes)).sum::<u32>(), tenths);
        }
    }

    /// At least the share that was asked for goes, however large a unit is.
    #[test]
    fn a_unit_without_room_makes_way_for_smaller_ones() {
        assert_eq!(goes(0.7, &[50, 10, 10, 10, 10, 10]), [1, 0, 0, 0, 1, 1]);
        assert!(goes(0.5, &[]).is_empty());
    }

    #[test]
    fn nothing_goes_nowhere() {
        assert_eq!(OptimizerOffload::NONE.goes(&[1, 2]), [false, false]);
    }
}
