//! Reading: a file's checked header, and tensors filled from what is read behind it.
//!
//! Nothing is mapped: a file that is cut or replaced by a copy while it is open gives an error, where a
//! map would end the process.

use std::{
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use safetensors::tensor::{Metadata, TensorInfo};

use super::{KINDS, LENGTH_BYTES};
use crate::{
    bridge::bytes::copy_from_bytes,
    error::{Code, Error, IoContext, Result},
    fs::{File, Place, open_file, refuse_pointer},
    tensor::{Kind, Tensor, dtype_name, is_floating},
    units::Bytes,
};

/// The longest header that the format allows.
const MOST_HEADER_BYTES: u64 = 100_000_000;

/// How a file begins that Git LFS has put in the place of a large one.
const LFS_POINTER_BYTES: u64 = 23;

/// Bytes that are read at once; a multiple of every element's size.
const CHUNK: usize = 16 << 20;

/// An open file of tensors.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    data_start: u64,
}

impl SafetensorsFile {
    /// Opens a file and checks its header; no tensor is read yet.
    pub fn open(place: impl Into<Place>) -> Result<Self> {
        let place = place.into();
        let (file, path) = (open_file(&place)?, place.path());
        let found = file.metadata().at("read", path)?.len();
        let header = header_bytes(path, &file, found)?;
        let data_start = LENGTH_BYTES as u64 + header.len() as u64;
        let header: Metadata = serde_json::from_slice(&header).map_err(|e| {
            Error::new(Code::Weights, format!("{} has an invalid header: {e}", path.display()))
        })?;
        let promised = u128::from(data_start) + header.data_len() as u128;
        if promised > u128::from(found) {
            return Err(truncated(path, promised, found));
        }
        if promised < u128::from(found) {
            bail!(
                Code::Weights,
                "{} is damaged: its header describes {promised} bytes, the file has {found}",
                path.display()
            );
        }
        Ok(Self { path: path.to_path_buf(), file, header, data_start })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the tensors, in the order of their data.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Result<Vec<i64>> {
        // The header's own check bounds the product by the size of a file, not each factor where
        // another is 0.
        let dims = self.info(name)?.shape.iter().map(|&dim| i64::try_from(dim));
        dims.collect::<Result<_, _>>().map_err(|e| {
            let path = self.path.display();
            Error::new(Code::Weights, format!("{path}: the shape of {name} is impossible"))
                .caused_by(e)
        })
    }

    /// The dtype of a tensor.
    pub fn kind(&self, name: &str) -> Result<Kind> {
        let dtype = self.info(name)?.dtype;
        match KINDS.iter().find(|(_, known)| *known == dtype) {
            Some(&(kind, _)) => Ok(kind),
            None => {
                let known: Vec<_> = KINDS.iter().map(|(_, dtype)| dtype.to_string()).collect();
                bail!(
                    Code::Weights,
                    "{}: {name} has the dtype {dtype}; expected one of {}",
                    self.path.display(),
                    known.join(", ")
                )
            }
        }
    }

    /// The free text of the header under a key, `format` for one.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// Whether two tensors have the same dtype, shape and bytes.
    pub fn has_same(&self, name: &str, other: &Self, other_name: &str) -> Result<bool> {
        let ((start, end), (other_start, other_end)) =
            (self.place(name)?, other.place(other_name)?);
        let looks_same = self.kind(name)? == other.kind(other_name)?
            && self.shape(name)? == other.shape(other_name)?
            && end - start == other_end - other_start;
        let mut done = 0;
        while looks_same && start + done < end {
            let len = (end - start - done).min(CHUNK as u64) as usize;
            if self.part(start + done, len)? != other.part(other_start + done, len)? {
                return Ok(false);
            }
            done += len as u64;
        }
        Ok(looks_same)
    }

    /// Where the bytes of a tensor begin and end in the file.
    fn place(&self, name: &str) -> Result<(u64, u64)> {
        let (start, end) = self.info(name)?.data_offsets;
        Ok((self.data_start + start as u64, self.data_start + end as u64))
    }

    /// The bytes of a tensor as they lie in the file.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let (start, end) = self.place(name)?;
        self.part(start, (end - start) as usize)
    }

    /// `len` bytes of the file from `start` on.
    fn part(&self, start: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_at(start, &mut bytes)?;
        Ok(bytes)
    }

    fn read_at(&self, start: u64, bytes: &mut [u8]) -> Result<()> {
        let path = &self.path;
        match self.file.read_exact_at(bytes, start) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                let found = self.file.metadata().at("read", path)?.len();
                let message = format!("{} was cut while it was open", path.display());
                let promised = start + bytes.len() as u64;
                Err(Error::new(Code::Weights, message).caused_by(truncated(
                    path,
                    promised.into(),
                    found,
                )))
            }
            read => read.at("read", path),
        }
    }

    /// Copies elements that begin at `start` in the file into a tensor, a part at a time.
    fn fill(&self, start: u64, kind: Kind, into: &Tensor) -> Result<()> {
        let (numel, size) = (into.numel(), kind.elt_size_in_bytes());
        if !into.is_contiguous() {
            return copy_from_bytes(&self.part(start, numel * size)?, kind, &into.size(), into);
        }
        let flat = into.detach().f_view([-1])?;
        let most = CHUNK / size;
        let mut bytes = vec![0; numel.min(most) * size];
        for from in (0..numel).step_by(most) {
            let len = most.min(numel - from);
            let part = &mut bytes[..len * size];
            self.read_at(start + (from * size) as u64, part)?;
            let into = flat.f_narrow(0, from as i64, len as i64)?;
            copy_from_bytes(part, kind, &[len as i64], &into)?;
        }
        Ok(())
    }

    /// Copies a tensor into one of the same shape; floating-point numbers are converted to its
    /// dtype, others must have it already. Autograd does not see it.
    pub fn copy_into(&self, name: &str, into: &Tensor) -> Result<()> {
        let (shape, kind) = (self.shape(name)?, self.kind(name)?);
        if shape != into.size() {
            bail!(
                Code::Weights,
                "{}: {name} has the shape {shape:?}, expected {:?}",
                self.path.display(),
                into.size()
            );
        }
        self.check_kind(name, kind, into)?;
        self.fill(self.place(name)?.0, kind, into)
    }

    /// Refuses a tensor that cannot become one of the kind of `into`.
    fn check_kind(&self, name: &str, kind: Kind, into: &Tensor) -> Result<()> {
        if kind == into.kind() || is_floating(kind) && is_floating(into.kind()) {
            return Ok(());
        }
        bail!(
            Code::Weights,
            "{}: {name} has the dtype {}, expected {}",
            self.path.display(),
            self.info(name)?.dtype,
            dtype_name(into.kind())
        )
    }

    /// Copies the elements of a tensor from `start` on into a flat one, as many as it has, as
    /// [`SafetensorsFile::copy_into`] does.
    pub fn copy_part(&self, name: &str, start: i64, into: &Tensor) -> Result<()> {
        let kind = self.kind(name)?;
        self.check_kind(name, kind, into)?;
        let size = kind.elt_size_in_bytes() as u64;
        let (begin, end) = self.place(name)?;
        let from = u64::try_from(start).ok().and_then(|start| start.checked_mul(size));
        let from = from.and_then(|from| from.checked_add(begin));
        let last = from.and_then(|from| from.checked_add(into.numel() as u64 * size));
        match from.zip(last) {
            Some((from, last)) if last <= end => self.fill(from, kind, into),
            _ => bail!(
                Code::Weights,
                "{}: {name} has {} elements, too few",
                self.path.display(),
                (end - begin) / size
            ),
        }
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header.info(name).ok_or_else(|| {
            let path = self.path.display();
            Error::new(Code::Weights, format!("{path} has no tensor {name}"))
        })
    }
}

/// The header of a file of `found` bytes, once its length is known to be possible.
fn header_bytes(path: &Path, file: &File, found: u64) -> Result<Vec<u8>> {
    let mut begin = vec![0; found.min(LFS_POINTER_BYTES) as usize];
    file.read_exact_at(&mut begin, 0).at("read", path)?;
    refuse_pointer(path, &begin, Code::Weights)?;
    let Some(length) = begin.first_chunk::<LENGTH_BYTES>() else {
        bail!(
            Code::Weights,
            "{} is truncated: a safetensors file begins with {LENGTH_BYTES} bytes of length, \
             the file has {found}",
            path.display(),
        );
    };
    let length = u64::from_le_bytes(*length);
    if length > MOST_HEADER_BYTES {
        bail!(
            Code::Weights,
            "{} is not a safetensors file: its first {LENGTH_BYTES} bytes would mean a header of \
             {length} bytes, {MOST_HEADER_BYTES} at most are allowed",
            path.display()
        );
    }
    let promised = length + LENGTH_BYTES as u64;
    if promised > found {
        return Err(truncated(path, promised.into(), found));
    }
    // At most MOST_HEADER_BYTES: the conversion is exact.
    let mut header = vec![0; length as usize];
    file.read_exact_at(&mut header, LENGTH_BYTES as u64).at("read", path)?;
    Ok(header)
}

fn truncated(path: &Path, promised: u128, found: u64) -> Error {
    Error::new(
        Code::Weights,
        format!(
            "{} is truncated: its header promises {promised} bytes, the file has {found} ({})",
            path.display(),
            Bytes(found)
        ),
    )
    .hint("copy or download the file again")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        bridge::ops::with_bytes,
        tensor::{Device, safetensors::write_tensors},
    };

    const CPU: Device = Device::Cpu;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    /// The message of the error for a file with these bytes.
    fn refusal(bytes: &[u8]) -> String {
        let dir = directory();
        let path = dir.path().join("model.safetensors");
        fs::write(&path, bytes).unwrap();
        let e = SafetensorsFile::open(&path).unwrap_err();
        assert_eq!(e.code(), Code::Weights);
        e.message().replace(&format!("{}/", dir.path().display()), "")
    }

    fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    #[test]
    fn what_is_written_comes_back_bit_by_bit() {
        let dir = directory();
        let path = dir.path().join("a.safetensors");
        let weight = Tensor::from_slice(&[f32::MIN_POSITIVE / 2.0, -0.0, f32::NAN, 1e38, 1.0, 2.0]);
        let weight = weight.view([2, 3]).set_requires_grad(true);
        let transposed = Tensor::from_slice(&[1i64, 2, 3, 4]).view([2, 2]).transpose(0, 1);
        let empty = Tensor::zeros([0, 4], (Kind::Half, CPU));
        let tensors = [("w", &weight), ("ids", &transposed), ("none", &empty)];
        write_tensors(&path, tensors).unwrap();

        let file = SafetensorsFile::open(&path).unwrap();
        assert_eq!(file.names(), ["ids", "w", "none"]);
        assert_eq!(file.metadata("format"), Some("pt"));
        assert_eq!(file.shape("none").unwrap(), [0, 4]);
        assert_eq!(file.kind("w").unwrap(), Kind::Float);
        let back = Tensor::zeros([2, 3], (Kind::Float, CPU)).set_requires_grad(true);
        file.copy_into("w", &back).unwrap();
        let bits = |t: &Tensor| with_bytes(&t.detach(), <[u8]>::to_vec).unwrap();
        assert_eq!(bits(&back), bits(&weight));
        let ids = Tensor::zeros([2, 2], (Kind::Int64, CPU));
        file.copy_into("ids", &ids).unwrap();
        assert!(ids.equal(&transposed));
        file.copy_into("none", &empty).unwrap();
    }

    #[test]
    fn a_file_that_is_cut_while_it_is_open_is_an_error() {
        let dir = directory();
        let path = dir.path().join("a");
        write_tensors(&path, [("w", &Tensor::zeros([5000], (Kind::Float, CPU)))]).unwrap();
        let file = SafetensorsFile::open(&path).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
        let into = Tensor::zeros([5000], (Kind::Float, CPU));
        let e = file.copy_into("w", &into).unwrap_err();
        assert!(e.message().ends_with("a was cut while it was open"), "{e}");
        assert_eq!(e.code(), Code::Weights);
    }

    #[test]
    fn a_tensor_of_many_parts_comes_back() {
        let dir = directory();
        let path = dir.path().join("a");
        let numbers = Tensor::arange(5 << 20, (Kind::Float, CPU));
        write_tensors(&path, [("w", &numbers), ("v", &numbers)]).unwrap();
        let file = SafetensorsFile::open(&path).unwrap();
        assert!(file.has_same("w", &file, "v").unwrap());
        let back = Tensor::zeros([5 << 20], (Kind::Float, CPU));
        file.copy_into("w", &back).unwrap();
        assert!(back.equal(&numbers));
    }

    #[test]
    fn floating_point_numbers_are_converted() {
        let dir = directory();
        for kind in [Kind::Half, Kind::BFloat16, Kind::Double] {
            let path = dir.path().join(format!("{kind:?}"));
            let tensor = Tensor::from_slice(&[0.5f32, -3.0]).to_kind(kind);
            write_tensors(&path, [("w", &tensor)]).unwrap();
            let file = SafetensorsFile::open(&path).unwrap();
            let back = Tensor::zeros([2], (Kind::Float, CPU));
            file.copy_into("w", &back).unwrap();
            assert_eq!(Vec::<f32>::try_from(&back).unwrap(), [0.5, -3.0]);
            let e = file.copy_into("w", &Tensor::zeros([2], (Kind::Int64, CPU))).unwrap_err();
            assert!(e.message().ends_with("expected int64"), "{e}");
        }
    }

    #[test]
    fn a_tensor_that_does_not_fit_is_named() {
        let dir = directory();
        let path = dir.path().join("a");
        write_tensors(&path, [("w", &Tensor::zeros([2, 3], (Kind::Float, CPU)))]).unwrap();
        let file = SafetensorsFile::open(&path).unwrap();
        let into = Tensor::zeros([3, 2], (Kind::Float, CPU));
        let e = file.copy_into("w", &into).unwrap_err();
        assert!(e.message().ends_with("w has the shape [2, 3], expected [3, 2]"), "{e}");
        let e = file.copy_into("v", &into).unwrap_err();
        assert!(e.message().ends_with("has no tensor v"), "{e}");
    }

    #[test]
    fn a_truncated_file_is_refused_with_both_sizes() {
        let dir = directory();
        let path = dir.path().join("a");
        write_tensors(&path, [("w", &Tensor::zeros([8], (Kind::Float, CPU)))]).unwrap();
        let whole = fs::read(&path).unwrap();
        for end in 0..whole.len() {
            let message = refusal(&whole[..end]);
            assert!(message.starts_with("model.safetensors is truncated: "), "{message}");
        }
        let short = whole.len() - 4;
        assert!(
            refusal(&whole[..short]).contains(&format!(
                "its header promises {} bytes, the file has {short}",
                whole.len()
            ))
        );
        assert!(refusal(&[&whole[..], b"x"].concat()).contains("is damaged"));
    }

    #[test]
    fn a_header_that_lies_is_refused() {
        let huge = [u64::MAX.to_le_bytes(), [b' '; 8]].concat();
        assert!(refusal(&huge).contains("is not a safetensors file"), "{}", refusal(&huge));
        let entry = |dtype: &str, shape: &str, offsets: &str| {
            let header = format!(
                r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#
            );
            refusal(&with_header(&header, &[0; 4]))
        };
        let lies = [
            entry("F32", "[2]", "[0,4]"),
            entry("F32", "[1]", "[4,8]"),
            entry("F32", "[1]", "[4,0]"),
            entry("F32", "[1]", "[-4,0]"),
            entry("F32", "[18446744073709551615,18446744073709551615]", "[0,4]"),
            entry("Q4_K", "[1]", "[0,4]"),
            refusal(&with_header("[]", &[])),
            refusal(&with_header("{\"w\"", &[])),
            refusal(&with_header("\u{0}\u{0}", &[])),
        ];
        for lie in lies {
            assert!(lie.starts_with("model.safetensors has an invalid header: "), "{lie}");
        }
        let far = entry("F32", "[36028797018963968]", "[0,144115188075855872]");
        assert!(far.starts_with("model.safetensors is truncated"), "{far}");
        assert!(refusal(b"version https://git-lfs.github.com/spec/v1\n").contains("Git LFS"));
    }

    #[test]
    fn a_dtype_that_cannot_be_read_is_an_error_where_it_is_wanted() {
        let dir = directory();
        let path = dir.path().join("a");
        let header = r#"{"mask":{"dtype":"BOOL","shape":[4],"data_offsets":[0,4]}}"#;
        fs::write(&path, with_header(header, &[0, 1, 2, 3])).unwrap();
        let e = SafetensorsFile::open(&path).unwrap().kind("mask").unwrap_err();
        assert!(e.message().contains("mask has the dtype BOOL; expected one of F32, F16"), "{e}");
    }
}
