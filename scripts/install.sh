#!/usr/bin/env bash
# Installs a built dsr so that it runs from anywhere, also after this directory is gone.
#
#   scripts/install.sh PREFIX [LIBTORCH [PROGRAM]]
#
# Puts the program into PREFIX/bin, libtorch's libraries into PREFIX/lib/dsr, and manual pages,
# completions and licences into PREFIX/share. LIBTORCH (default: libtorch) is the directory that the
# program was built with.
set -euo pipefail
cd "$(dirname "$0")/.."

prefix=${1:?usage: scripts/install.sh PREFIX [LIBTORCH [PROGRAM]]}
libtorch=${2:-libtorch}
program=${3:-target/release/dsr}

die() {
  echo "install: $*" >&2
  exit 1
}

[ -x "$program" ] || die "$program is missing: run cargo build --release"
mkdir -p "$prefix"/{bin,lib,share/{doc/dsr,man/man1,bash-completion/completions,zsh/site-functions,fish/vendor_completions.d}}
prefix=$(cd "$prefix" && pwd)

# Beside the old ones, which a running program may use, until all are there.
new=$prefix/lib/dsr.new
rm -rf "$new"
mkdir "$new"
cp -L "$libtorch"/lib/*.so* "$new"/
rm -rf "$prefix/lib/dsr"
mv "$new" "$prefix/lib/dsr"
strip -o "$prefix/bin/dsr.new" "$program"
mv "$prefix/bin/dsr.new" "$prefix/bin/dsr"

# Nothing may be missing, and nothing be found in this directory.
libraries=$(env -u LD_LIBRARY_PATH ldd "$prefix/bin/dsr")
if grep 'not found' <<<"$libraries"; then
  die "these libraries are neither in $libtorch/lib nor in the system: take the libtorch of make libtorch"
fi

"$prefix/bin/dsr" man "$prefix/share/man/man1"
"$prefix/bin/dsr" completions bash >"$prefix/share/bash-completion/completions/dsr"
"$prefix/bin/dsr" completions zsh >"$prefix/share/zsh/site-functions/_dsr"
"$prefix/bin/dsr" completions fish >"$prefix/share/fish/vendor_completions.d/dsr.fish"
cp README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE NOTICE "$prefix/share/doc/dsr"
echo "installed $prefix/bin/dsr"
