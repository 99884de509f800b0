#!/usr/bin/env bash
# Fuzzes every reader of foreign bytes for SECONDS each (600), from the fixtures as seeds: fuzz/run.sh [SECONDS] [TARGET..]
# cargo-fuzz asks for a nightly compiler's flags; RUSTC_BOOTSTRAP lets the stable one take them. What crashes lies in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-600}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(weights artifact text pictures)
command -v cargo-fuzz > /dev/null || cargo install cargo-fuzz
export RUSTC_BOOTSTRAP=1
fixtures=../tests/fixtures
kind() { printf "\\x$(printf %02x "$1")"; }
seed() { # target, files of at most 64 KiB
  local target=$1; shift
  mkdir -p "corpus/$target"
  for f in "$@"; do
    if [ -f "$f" ] && [ "$(stat -c %s "$f")" -lt 65536 ]; then cp "$f" "corpus/$target/$(echo "$f" | tr / _)"; fi
  done
}
with_kind() { # target, number of the kind, files
  local target=$1 number=$2; shift 2
  mkdir -p "corpus/$target"
  for f in "$@"; do
    if [ -f "$f" ] && [ "$(stat -c %s "$f")" -lt 65536 ]; then
      { kind "$number"; cat "$f"; } > "corpus/$target/$number$(echo "$f" | tr / _)"
    fi
  done
}
seed weights $(find $fixtures -name '*.safetensors' -o -name '*.gguf' -o -name '*.bin' -o -name '*.pt' -o -name '*.pth')
mkdir -p corpus/artifact
for f in $(find $fixtures -name config.json) ../unified/assets/nano/config.json; do
  { cat "$f"; printf '\0'; } > "corpus/artifact/$(echo "$f" | tr / _)"
done
with_kind text 0 $(find $fixtures -name '*.jinja')
with_kind text 1 ../unified/assets/nano/tokenizer.json
with_kind pictures 0 $(find $fixtures -name '*.png' -o -name '*.jpg' -o -name '*.webp' -o -name '*.gif')
number=1
for end in parquet csv tsv jsonl tar tar.gz json; do
  with_kind pictures $number $(find $fixtures/field $fixtures/photos -name "*.$end")
  number=$((number + 1))
done
for t in "${targets[@]}"; do
  cargo fuzz run --release --sanitizer none "$t" -- -max_total_time="$seconds" -rss_limit_mb=4096 -max_len=131072 -timeout=20 -print_final_stats=1
done
