#!/usr/bin/env bash
# Peak memory of stage 1 against the batch, for each way of saving memory: three updates of the nano tokenizer each.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=$(mktemp -d)
trap 'rm -r "$runs"' EXIT
cargo build --release --quiet --workspace --bins

# peak NAME BATCH [KEY=VALUE ..]: MiB
peak() {
  local out="$runs/$1-$2" batch=$2
  shift 2
  local set=(--set run.steps=3 --set "run.batch_size=$batch" --set tokenizer=unified/assets/nano/qlip/tokenizer.json)
  for pair in "$@"; do set+=(--set "$pair"); done
  if ! target/release/unified train configs/nano/qlip-stage1.toml --out "$out" "${set[@]}" 2>"$runs/log"; then
    echo "failed: $(tail -n1 "$runs/log")"
    return
  fi
  sed -n 's/.*"peak_memory_mib": \([0-9]*\).*/\1/p' "$out/summary.json"
}

echo '| pictures an update | plain, MiB | `recompute` | `micro_batch = 32` | both |'
echo '|---|---|---|---|---|'
for batch in 64 256 1024; do
  plain=$(peak plain $batch)
  recompute=$(peak recompute $batch run.recompute=true)
  parts=$(peak parts $batch run.micro_batch=32)
  both=$(peak both $batch run.recompute=true run.micro_batch=32)
  echo "| $batch | $plain | $recompute | $parts | $both |"
done
