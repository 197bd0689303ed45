# What people run first. cargo works by itself once libtorch/ is there, see .cargo/config.toml.
#
#   make run          train GPT-2 on the embedded sample of Jane Austen
#   make test         everything that must hold before a change is kept
#   make install      install dsr below PREFIX (~/.local), with its libtorch
#   make dist         the same as an archive in target/dist
#   make docs         build the book in docs/ as HTML, with mdbook
#   make bench        speed and memory beside PyTorch, which it installs (6 GB)
#   make libtorch     fetch libtorch into libtorch/, unless LIBTORCH names one
#   make fuzz         ten minutes of made-up inputs for each reader of text, see tests/fuzz
#   make check-cuda   build for CUDA, with NCCL, on any machine (8 GB of disk)

CARGO ?= cargo

FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= options split safetensors deepspeed recipe

PREFIX ?= $(HOME)/.local
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)

.PHONY: run test install dist docs bench fuzz libtorch check-cuda

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

install: libtorch
	$(CARGO) build --release
	scripts/install.sh '$(PREFIX)' "$${LIBTORCH:-libtorch}"

# Named after the machine and, with CUDA, after that.
dist: libtorch
	$(CARGO) build --release
	kind=$$(ls "$${LIBTORCH:-libtorch}"/lib/libtorch_cuda.so >/dev/null 2>&1 && echo -cuda || true); \
	name=dsr-$(VERSION)-$$(uname -m)-linux$$kind; \
	rm -rf "target/dist/$$name"; \
	scripts/install.sh "target/dist/$$name" "$${LIBTORCH:-libtorch}" && \
	tar -C target/dist -czf "target/dist/$$name.tar.gz" "$$name" && \
	echo "target/dist/$$name.tar.gz"

docs:
	@command -v mdbook >/dev/null || { echo 'mdbook is missing: cargo install mdbook; the pages in docs/src read well without it' >&2; exit 1; }
	mdbook build docs --dest-dir "$(CURDIR)/target/book"

bench: libtorch
	benches/run.sh

# What is found on the way goes into the first directory, which is not kept; tests/fuzz/README.md
# says what to do with a crash.
fuzz: export OMP_NUM_THREADS ?= 1
fuzz: libtorch
	for target in $(FUZZ_TARGETS); do \
	    mkdir -p target/fuzz/corpus/$$target; \
	    $(CARGO) +nightly fuzz run -s none --fuzz-dir tests/fuzz --target-dir target/fuzz \
	        $$target target/fuzz/corpus/$$target tests/fuzz/corpus/$$target -- \
	        -dict=tests/fuzz/dictionaries/$$target.txt -max_total_time=$(FUZZ_SECONDS) \
	        -timeout=10 -rss_limit_mb=4096 || exit 1; \
	done

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
	ldd target/check-cuda/release/dsr | grep libtorch_cuda.so
