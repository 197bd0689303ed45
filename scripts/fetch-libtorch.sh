#!/usr/bin/env bash
# Fetches libtorch 2.13.0, the version that the tch crate requires.
#
#   scripts/fetch-libtorch.sh [auto|cpu|cuda] [directory]
#
# Fills the directory (default: libtorch) with include/, lib/ and build-version; `cuda` adds
# cuda/include with the headers of CUDA and NCCL. `auto` chooses CUDA where nvidia-smi answers.
# Does nothing if the directory exists, or if LIBTORCH names a libtorch of your own.
#
# The files are taken out of the official Python wheels, each checked against its sha256; no Python
# environment is made, and of the 5 GB that Python installs a CPU machine gets 0.6 GB. Where pip is
# missing, the official libtorch archive for the CPU is taken instead.
set -euo pipefail

version=2.13.0
archive="https://download.pytorch.org/libtorch/cpu/libtorch-shared-with-deps-${version}%2Bcpu.zip"

# name==version sha256, for x86_64 Linux. libtorch_cpu of these wheels needs CUDA's runtime and
# profiler interface even where there is no GPU.
cpu_wheels='
torch==2.13.0 796633c4cdf0fe2cdced72d8f88f22e73dbcfce83132763162f6d4bff13b820b
nvidia-cuda-runtime==13.0.96 7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cupti==13.0.85 4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8
'
# What torch 2.13.0 requires in its metadata; the last two are headers only.
cuda_wheels='
nvidia-cublas==13.1.1.3 37936a16db8fe4ac1f065c2139360608a543a09275cb1a1af612e08cfa065436
nvidia-cuda-nvrtc==13.0.88 ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575
nvidia-cudnn-cu13==9.20.0.48 0c45dd8eeb50b603f07995b1b300c62ffe6a1980482b82b3bcf94a4ca9d49304
nvidia-cufft==12.0.0.61 6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3
nvidia-cufile==1.15.1.6 08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44
nvidia-curand==10.4.0.35 1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc
nvidia-cusolver==12.0.4.66 0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112
nvidia-cusparse==12.6.3.3 2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b
nvidia-cusparselt-cu13==0.8.1 786ce87568c303fadb5afcc7102d454cd3040d75f6f8626f5db460d1871f4dd0
nvidia-nccl-cu13==2.29.7 edd81538446786ec3b73972543e53bb43bcaf0bfc8ef76cb679fcc390ffe136d
nvidia-nvjitlink==13.0.88 13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b
nvidia-nvshmem-cu13==3.4.5 290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80
nvidia-nvtx==13.0.85 4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4
nvidia-cuda-crt==13.0.88 2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4
nvidia-cuda-cccl==13.0.85 e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649
'

die() {
  echo "fetch-libtorch: $*" >&2
  exit 1
}

has() {
  command -v "$1" >/dev/null 2>&1
}

# Everything that can be missing, said before anything is downloaded.
check_machine() {
  [ "$(uname -sm)" = "Linux x86_64" ] ||
    die "libtorch is fetched for Linux on x86_64 only, this is $(uname -sm): set LIBTORCH"
  echo 'int main() {}' | "${CXX:-c++}" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null ||
    die "${CXX:-c++} is missing or knows no C++20: install a C++ compiler (Debian: g++), or set CXX"
  if python3 -m pip --version >/dev/null 2>&1; then
    source=wheels
  elif [ "$kind" = cuda ]; then
    die "pip for python3 is missing: it is needed to fetch libtorch for CUDA (Debian: python3-pip)"
  elif has curl && { has unzip || has python3; }; then
    source=archive
  else
    die "pip for python3 is missing (Debian: python3-pip), and so are curl and unzip"
  fi
  local needed_gb=2 free_kb
  if [ "$kind" = cuda ]; then needed_gb=8; fi
  free_kb=$(df -Pk "$parent" | awk 'NR == 2 { print $4 }')
  [ "$free_kb" -ge $((needed_gb * 1024 * 1024)) ] ||
    die "$parent has $((free_kb / 1024 / 1024)) GB free, but $needed_gb GB are needed"
}

# One requirement a line, as pip wants it to check the sums.
requirements() {
  echo "$1" | awk 'NF { print $1 " --hash=sha256:" $2 }'
}

from_wheels() {
  local wheels=$cpu_wheels platforms=() tag
  if [ "$kind" = cuda ]; then wheels+=$cuda_wheels; fi
  for tag in 2_28 2_27 2_26 2_25 2_24 2_18 2_17 2_12 2_5; do
    platforms+=(--platform "manylinux_${tag}_x86_64")
  done
  platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64)
  requirements "$wheels" >"$temporary/requirements.txt"
  TMPDIR=$temporary python3 -m pip download --quiet --no-deps --no-cache-dir --require-hashes \
    --only-binary=:all: --implementation cp --python-version 3.12 "${platforms[@]}" \
    --dest "$temporary/wheels" --requirement "$temporary/requirements.txt" ||
    die "the download failed; run it again, or set LIBTORCH to a libtorch $version"
  echo "fetch-libtorch: unpacking"
  unpack_wheels
}

# libtorch looks for the libraries that it needs beside itself, so all of them go into lib/.
unpack_wheels() {
  python3 - "$temporary/wheels" "$temporary/libtorch" "$kind" <<'PYTHON'
import os, re, shutil, sys, zipfile

wheels, root, kind = sys.argv[1:]
CPU = {"libc10.so", "libgomp.so.1", "libshm.so", "libtorch.so", "libtorch_cpu.so",
       "libtorch_global_deps.so", "libcudart.so.13", "libcupti.so.13"}

def target(name):
    """Where a member of a wheel goes, or None."""
    library = re.fullmatch(r"(?:torch|nvidia/\w+)/lib/([^/]+\.so[^/]*)", name)
    if library and library[1] != "libtorch_python.so":
        return f"lib/{library[1]}" if kind == "cuda" or library[1] in CPU else None
    if name.startswith("torch/include/"):
        return name.removeprefix("torch/")
    header = re.fullmatch(r"nvidia/\w+/include/(.+)", name)
    return f"cuda/include/{header[1]}" if header and kind == "cuda" else None

for wheel in sorted(os.listdir(wheels)):
    with zipfile.ZipFile(os.path.join(wheels, wheel)) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.filename == "torch/version.py":
                version = re.search(r"__version__ = '(.+)'", archive.read(member).decode())[1]
                os.makedirs(root, exist_ok=True)
                with open(os.path.join(root, "build-version"), "w") as file:
                    file.write(version + "\n")
            if place := target(member.filename):
                path = os.path.join(root, place)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with archive.open(member) as source, open(path, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    os.remove(os.path.join(wheels, wheel))
PYTHON
}

# The archive's publisher lists no sum to pin: its version is checked and its sum is shown.
from_archive() {
  curl --fail --location --show-error --output "$temporary/libtorch.zip" "$archive" ||
    die "the download failed; run it again, or set LIBTORCH to a libtorch $version"
  echo "fetch-libtorch: sha256 $(sha256sum "$temporary/libtorch.zip" | cut -d ' ' -f 1)"
  if has unzip; then
    unzip -q "$temporary/libtorch.zip" -d "$temporary"
  else
    python3 -m zipfile -e "$temporary/libtorch.zip" "$temporary"
  fi
  rm "$temporary/libtorch.zip"
}

kind=${1:-auto}
directory=${2:-libtorch}
case $kind in
  auto | cpu | cuda) ;;
  *) die "no kind '$kind': auto, cpu or cuda" ;;
esac
if [ -n "${LIBTORCH:-}" ]; then
  [ -f "$LIBTORCH/lib/libtorch_cpu.so" ] ||
    die "LIBTORCH is set to $LIBTORCH, which is no libtorch: unset it to have one fetched"
  echo "fetch-libtorch: LIBTORCH is set, using $LIBTORCH"
  exit 0
fi
if [ -e "$directory" ]; then
  [ -f "$directory/lib/libtorch_cpu.so" ] ||
    die "$directory exists, but is no libtorch: remove it"
  if [ "$kind" = cuda ] && [ ! -f "$directory/lib/libtorch_cuda.so" ]; then
    die "$directory holds libtorch for the CPU: remove it to fetch the one for CUDA"
  fi
  exit 0
fi
if [ "$kind" = auto ]; then
  if nvidia-smi >/dev/null 2>&1; then kind=cuda; else kind=cpu; fi
fi
parent=$(dirname "$directory")
mkdir -p "$parent"
check_machine

# Beside the directory, so that the last step is a rename: it is there whole or not at all.
temporary=$(mktemp -d "$parent/.fetch-libtorch.XXXXXX")
trap 'rm -rf "$temporary"' EXIT
trap 'exit 130' INT TERM
echo "fetch-libtorch: fetching libtorch $version for $kind into $directory"
"from_$source"
found=$(cat "$temporary/libtorch/build-version" 2>/dev/null || true)
[ "${found%%+*}" = "$version" ] || die "expected libtorch $version, found '${found:-no version}'"
mv -T "$temporary/libtorch" "$directory"
echo "fetch-libtorch: $directory holds libtorch $found for $kind"
