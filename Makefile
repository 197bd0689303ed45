# What people run first. cargo works by itself once libtorch/ is there, see .cargo/config.toml.
#
#   make run          train GPT-2 on the embedded sample of Jane Austen
#   make test         everything that must hold before a change is kept
#   make bench        speed and memory beside PyTorch, which it installs (6 GB)
#   make libtorch     fetch libtorch into libtorch/, unless LIBTORCH names one
#   make check-cuda   build for CUDA, with NCCL, on any machine (8 GB of disk)

CARGO ?= cargo

.PHONY: run test bench libtorch check-cuda

run: libtorch
	$(CARGO) build --release
	target/release/dsr run recipes/gpt2_wikitext.rhai

# Tests run beside each other: threads of libtorch that wait for a core in a loop would only take it
# from another test.
test: export OMP_NUM_THREADS ?= 1
test: libtorch
	$(CARGO) fmt --check
	$(CARGO) clippy --release --all-targets -- -D warnings
	$(CARGO) test --release

bench: libtorch
	benches/run.sh

# Always asked: the script does nothing where libtorch is there, and says what is missing where the
# directory is not whole.
libtorch:
	@command -v $(CARGO) >/dev/null || { echo 'cargo is missing: install Rust, https://rustup.rs' >&2; exit 1; }
	@scripts/fetch-libtorch.sh auto libtorch

# A libtorch and a target directory of its own: the build for this machine stays as it is.
check-cuda: export LIBTORCH = $(CURDIR)/libtorch-cuda
check-cuda:
	env -u LIBTORCH scripts/fetch-libtorch.sh cuda libtorch-cuda
	$(CARGO) test --release --target-dir target/check-cuda --no-run
	$(CARGO) build --release --target-dir target/check-cuda
	ldd target/check-cuda/release/dsr | grep libtorch_cuda.so
