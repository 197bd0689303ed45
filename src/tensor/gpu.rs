//! NVIDIA's cards: their names, their memory and their peak speed.
//!
//! Peaks are those of NVIDIA's datasheets and architecture whitepapers, in TFLOP/s: tensor cores with
//! float32 accumulation, which is what libtorch's products have, and without sparsity, which doubles
//! the number on the title page. GeForce cards do half as many operations with float32 accumulation
//! as with float16's, the number that is advertised; workstation cards of the same chips do not.
//! Bandwidths are those of the same datasheets, such as NVIDIA H200 (4.8 TB/s), H100 (SXM 3.35 TB/s), A100
//! (80 GB SXM 2,039 GB/s, 40 GB 1,555 GB/s) and the whitepapers of Blackwell (RTX 5090, 1,792 GB/s), Ada
//! (RTX 4090, 1,008 GB/s) and Ampere GA102 (RTX 3090, 936 GB/s).

use super::Device;
use crate::{
    bridge::device,
    config::{Dtype, suggest::nearest},
    error::{Code, Error, Result},
};

/// A kind of card.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gpu {
    /// Its names without the maker's and the family's: the first is what people write; CUDA's are
    /// among them.
    names: &'static [&'static str],
    /// The memory that CUDA reports, in MiB: less than the name promises, as drivers and error
    /// correction take their part.
    mib: u64,
    /// The bandwidth of its memory.
    gb_per_second: u32,
    half: Half,
    /// Float32 rounded to TF32 on tensor cores, where they have it.
    tf32: Option<f64>,
    /// Float32 without tensor cores.
    fp32: f64,
}

/// The peak of 16-bit products.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Half {
    /// Of fp16 and bf16.
    Both(f64),
    /// Of fp16; bf16 is emulated.
    Fp16(f64),
}

use Half::{Both, Fp16};

#[rustfmt::skip]
const GPUS: &[Gpu] = &[
    gpu(&["B200"], 182_630, 8000, Both(2250.0), (1125.0, 75.0)),
    gpu(&["H200", "H200 SXM"], 143_156, 4800, Both(989.4), (494.7, 66.9)),
    gpu(&["H200 NVL"], 143_156, 4800, Both(835.5), (417.5, 60.0)),
    gpu(&["H100", "H100 SXM", "H100 80GB HBM3"], 81_005, 3350, Both(989.4), (494.7, 66.9)),
    gpu(&["H100 PCIe"], 81_005, 2039, Both(756.0), (378.0, 51.2)),
    gpu(&["H100 NVL"], 95_334, 3938, Both(835.5), (417.5, 60.0)),
    gpu(&["A100 80GB", "A100-SXM4-80GB", "A100 80GB PCIe"], 81_050, 2039, Both(312.0), (156.0, 19.5)),
    gpu(&["A100 40GB", "A100-SXM4-40GB", "A100-PCIE-40GB"], 40_339, 1555, Both(312.0), (156.0, 19.5)),
    gpu(&["L40S"], 45_455, 864, Both(362.05), (183.2, 91.6)),
    gpu(&["A10G"], 22_508, 600, Both(70.0), (35.0, 31.5)),
    gpu(&["A10"], 22_508, 600, Both(125.0), (62.5, 31.2)),
    gpu(&["L4"], 22_563, 300, Both(121.0), (60.5, 30.3)),
    gpu(&["RTX PRO 6000", "RTX PRO 6000 Blackwell Workstation Edition"], 97_250, 1792, Both(503.8), (251.9, 126.0)),
    gpu(&["RTX 6000 Ada", "RTX 6000 Ada Generation"], 48_510, 960, Both(364.2), (182.1, 91.1)),
    gpu(&["A6000", "RTX A6000"], 48_670, 768, Both(154.8), (77.4, 38.7)),
    gpu(&["A40"], 45_455, 696, Both(149.7), (74.8, 37.4)),
    gpu(&["RTX 5090"], 32_110, 1792, Both(209.5), (104.8, 104.8)),
    gpu(&["RTX 5080"], 15_841, 960, Both(112.6), (56.3, 56.3)),
    gpu(&["RTX 5070 Ti"], 15_841, 896, Both(87.9), (43.9, 43.9)),
    gpu(&["RTX 5070"], 11_776, 672, Both(61.7), (30.9, 30.9)),
    gpu(&["RTX 5060 Ti 16GB", "RTX 5060 Ti"], 15_841, 448, Both(47.4), (23.7, 23.7)),
    gpu(&["RTX 4090"], 24_083, 1008, Both(165.2), (82.6, 82.6)),
    gpu(&["RTX 4080 SUPER"], 15_943, 736, Both(104.4), (52.2, 52.2)),
    gpu(&["RTX 4080"], 15_943, 717, Both(97.5), (48.7, 48.7)),
    gpu(&["RTX 4070 Ti SUPER"], 15_943, 672, Both(88.2), (44.1, 44.1)),
    gpu(&["RTX 4070 Ti"], 11_930, 504, Both(80.2), (40.1, 40.1)),
    gpu(&["RTX 4070 SUPER"], 11_930, 504, Both(71.0), (35.5, 35.5)),
    gpu(&["RTX 4070"], 11_930, 504, Both(58.3), (29.1, 29.1)),
    gpu(&["RTX 4060 Ti 16GB", "RTX 4060 Ti"], 15_943, 288, Both(44.1), (22.1, 22.1)),
    gpu(&["RTX 4060"], 7_813, 272, Both(30.2), (15.1, 15.1)),
    gpu(&["RTX 3090 Ti"], 24_124, 1008, Both(80.0), (40.0, 40.0)),
    gpu(&["RTX 3090"], 24_124, 936, Both(71.0), (35.6, 35.6)),
    gpu(&["RTX 3080 Ti"], 11_909, 912, Both(68.2), (34.1, 34.1)),
    gpu(&["RTX 3080"], 9_871, 760, Both(59.5), (29.8, 29.8)),
    gpu(&["RTX 3070 Ti"], 7_813, 608, Both(43.5), (21.7, 21.7)),
    gpu(&["RTX 3070"], 7_813, 448, Both(40.6), (20.3, 20.3)),
    gpu(&["RTX 3060 Ti"], 7_813, 448, Both(32.4), (16.2, 16.2)),
    gpu(&["RTX 3060"], 11_909, 360, Both(25.5), (12.7, 12.7)),
    older(&["V100 32GB", "V100-SXM2-32GB"], 32_494, 900, Fp16(125.0), 15.7),
    older(&["V100 16GB", "V100-SXM2-16GB"], 16_144, 900, Fp16(125.0), 15.7),
    older(&["V100 PCIe", "V100-PCIE-16GB"], 16_144, 900, Fp16(112.0), 14.0),
    older(&["T4"], 14_910, 320, Fp16(65.0), 8.1),
];

/// Names, MiB of memory, GB/s of its bandwidth, TFLOP/s.
const fn gpu(
    names: &'static [&'static str],
    mib: u64,
    gb_per_second: u32,
    half: Half,
    (tf32, fp32): (f64, f64),
) -> Gpu {
    Gpu { names, mib, gb_per_second, half, tf32: Some(tf32), fp32 }
}

/// One from before Ampere.
const fn older(
    names: &'static [&'static str],
    mib: u64,
    gb_per_second: u32,
    half: Half,
    fp32: f64,
) -> Gpu {
    Gpu { names, mib, gb_per_second, half, tf32: None, fp32 }
}

impl Gpu {
    /// The card that people or CUDA call by this name, if it is known: `5090` is an RTX 5090.
    pub fn find(name: &str) -> Option<Self> {
        let name = bare(name);
        let is = |known: &&str| {
            let short = known.strip_prefix("RTX ").unwrap_or(known);
            known.eq_ignore_ascii_case(&name) || short.eq_ignore_ascii_case(&name)
        };
        GPUS.iter().find(|gpu| gpu.names.iter().any(is)).copied()
    }

    /// The card of this name.
    pub fn named(name: &str) -> Result<Self> {
        if let Some(gpu) = Self::find(name) {
            return Ok(gpu);
        }
        let mut e = Error::new(Code::Usage, format!("no GPU \"{name}\" is known"));
        let names: Vec<_> = GPUS.iter().map(|gpu| gpu.names[0]).collect();
        let start = format!("{} ", bare(name).to_uppercase());
        let mut meant: Vec<&str> =
            names.iter().copied().filter(|name| name.starts_with(&start)).collect();
        if meant.is_empty() {
            let all = GPUS.iter().flat_map(|gpu| gpu.names);
            meant.extend(nearest(&bare(name), all.copied()));
        }
        if !meant.is_empty() {
            e = e.hint(format!("did you mean \"{}\"?", meant.join("\" or \"")));
        }
        Err(e.hint(format!("known are {}", names.join(", "))))
    }

    /// The card that `device` is, if it is one that is known.
    pub fn of(device: Device) -> Option<Self> {
        match device {
            Device::Cuda(index) => Self::find(&device::properties(index).ok()?.name),
            _ => None,
        }
    }

    /// Whether it has units for bfloat16.
    pub fn has_bf16(&self) -> bool {
        matches!(self.half, Both(_))
    }

    /// Bytes of its memory.
    pub fn memory(&self) -> u64 {
        self.mib << 20
    }

    /// Operations a second at most in products of `dtype`, as libtorch does them now: those of
    /// float32 may round to TF32. `None` where the card has no units for it.
    pub fn peak_flops(&self, dtype: Dtype) -> Option<f64> {
        // Where libtorch cannot tell, nobody has changed its default.
        self.peak(dtype, device::uses_tf32().unwrap_or(false))
    }

    /// The first of its names.
    pub fn name(&self) -> &'static str {
        self.names[0]
    }

    /// Bytes a second of its memory, as published.
    pub fn bandwidth(&self) -> f64 {
        f64::from(self.gb_per_second) * 1e9
    }

    /// As [`Gpu::peak_flops`], of products of float32 that round to TF32 or do not.
    pub fn peak(&self, dtype: Dtype, tf32: bool) -> Option<f64> {
        let tera = match (dtype, self.half) {
            (Dtype::Fp16, Both(peak) | Fp16(peak)) | (Dtype::Bf16, Both(peak)) => peak,
            (Dtype::Bf16, Fp16(_)) => return None,
            (Dtype::Fp32, _) => self.tf32.filter(|_| tf32).unwrap_or(self.fp32),
        };
        Some(tera * 1e12)
    }
}

/// The compute capability from which on GPUs have units for bfloat16: Ampere's.
const BF16_CAPABILITY: (i32, i32) = (8, 0);

/// Whether a device is a GPU with units for bfloat16.
pub fn has_bf16(device: Device) -> Result<bool> {
    match device {
        Device::Cuda(index) => Ok(device::properties(index)?.capability >= BF16_CAPABILITY),
        _ => Ok(false),
    }
}

/// A name without the words that all names have.
fn bare(name: &str) -> String {
    let is_common = |word: &&str| {
        ["nvidia", "geforce", "tesla"].iter().any(|common| common.eq_ignore_ascii_case(word))
    };
    name.split_whitespace().filter(|word| !is_common(word)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_known_by_what_people_and_cuda_call_it() {
        let same = [
            ("H100", "NVIDIA H100 80GB HBM3"),
            ("A100 80GB", "NVIDIA A100-SXM4-80GB"),
            ("V100 16GB", "Tesla V100-SXM2-16GB"),
            ("T4", "Tesla T4"),
            ("rtx 4090", "NVIDIA GeForce RTX 4090"),
            ("A6000", "NVIDIA RTX A6000"),
            ("5070 ti", "NVIDIA GeForce RTX 5070 Ti"),
        ];
        for (people, cuda) in same {
            assert_eq!(Gpu::find(people).unwrap(), Gpu::find(cuda).unwrap(), "{people}");
        }
        // Another card, in spite of its name.
        assert_eq!(Gpu::find("NVIDIA GeForce RTX 4090 Laptop GPU"), None);
        let e = Gpu::named("RTX 5091").unwrap_err();
        assert_eq!(e.hints()[0], "did you mean \"RTX 5090\"?");
        let e = Gpu::named("a100").unwrap_err();
        assert_eq!(e.hints()[0], "did you mean \"A100 80GB\" or \"A100 40GB\"?");
    }

    #[test]
    fn no_name_means_two_cards() {
        let mut names: Vec<_> = GPUS.iter().flat_map(|gpu| gpu.names).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for name in names {
            assert_eq!(bare(name), *name);
        }
    }

    #[test]
    fn a_peak_is_that_of_the_dtype() {
        let peak = |name, dtype, tf32| Gpu::find(name).unwrap().peak(dtype, tf32);
        assert_eq!(peak("H100", Dtype::Bf16, false), Some(989.4e12));
        assert_eq!(peak("H100", Dtype::Fp32, true), Some(494.7e12));
        assert_eq!(peak("H100", Dtype::Fp32, false), Some(66.9 * 1e12));
        assert_eq!(peak("T4", Dtype::Fp16, false), Some(65e12));
        assert_eq!(peak("T4", Dtype::Fp32, true), Some(8.1e12));
        assert_eq!(peak("T4", Dtype::Bf16, false), None);
    }

    /// On GeForce cards from Ampere on, tensor cores do two 16-bit operations with float32
    /// accumulation for one of TF32 and one of the other cores; within 1 %, as the sources round.
    #[test]
    fn geforce_cards_have_the_rate_of_float32_accumulation() {
        let is_geforce = |gpu: &&Gpu| gpu.names[0].starts_with("RTX") && gpu.mib < 33_000;
        for gpu in GPUS.iter().filter(is_geforce) {
            let of = |dtype, tf32| gpu.peak(dtype, tf32).unwrap();
            assert_eq!(of(Dtype::Fp32, true), of(Dtype::Fp32, false));
            let ratio = of(Dtype::Bf16, false) / of(Dtype::Fp32, false);
            assert!((1.98..2.02).contains(&ratio), "{:?}: {ratio}", gpu.names);
        }
    }
}
