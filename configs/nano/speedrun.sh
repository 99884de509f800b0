#!/usr/bin/env bash
# From nothing to the nano model in one command: configs/nano/speedrun.sh PHOTOS [OUT]. Stopped and started again it goes on where it
# was. STEPS=3 tries the way with three updates a stage. Ends with a table: time and last losses of each stage, and every number of the scenes suite.
set -euo pipefail
cd "$(dirname "$0")/../.."
photos=${1:?folder of CIFAR-10 in the Hugging Face parquet layout}
out=${2:-runs/nano}
cargo build --release -p unified-mm -p unified-eval
u=target/release/unified
mkdir -p "$out"
stages=()
stage() { # name, config, settings
  local name=$1 config=$2; shift 2
  stages+=("$name")
  if [ ! -e "$out/$name/done" ]; then
    "$u" train "$config" --out "$out/$name" --resume "$@" ${STEPS:+--set run.steps=$STEPS --set optim.warmup=1}
    touch "$out/$name/done"
  fi
}
if [ ! -e "$out/tokenizer/tokenizer.json" ]; then
  "$u" train configs/nano/tokenizer.toml --out "$out/tokenizer"
fi
words="tokenizer=$out/tokenizer/tokenizer.json"
stage qlip1 configs/nano/qlip-stage1.toml --set "data.pictures.path=$photos" --set "$words"
stage unified configs/nano/unified.toml --set "data.pictures.path=$photos" --set "$words" --set "image_tokenizer=$out/qlip1"
stage unified-more configs/nano/unified-more.toml --set "data.pictures.path=$photos" --set "$words" --set "image_tokenizer=$out/qlip1" \
  --set "start=$out/unified"
before=unified-more
for s in unified-copy unified-long unified-next; do
  stage "$s" "configs/nano/$s.toml" --set "data.pictures.path=$photos" --set "$words" --set "image_tokenizer=$out/qlip1" --set "start=$out/$before"
  before=$s
done
stage qlip2 configs/nano/qlip-stage2.toml --set "data.pictures.path=$photos" --set "start=$out/qlip1"
stage qlip-kept configs/nano/qlip-kept.toml --set "data.pictures.path=$photos" --set "start=$out/qlip2"
stage unified-kept configs/nano/unified-kept.toml --set "data.pictures.path=$photos" --set "$words" --set "image_tokenizer=$out/qlip-kept" \
  --set "start=$out/unified-next"
stage qlip-pixels configs/nano/qlip-pixels.toml --set "data.pictures.path=$photos" --set "start=$out/qlip-kept"
stage qlip-more configs/nano/qlip-more.toml --set "data.pictures.path=$photos" --set "start=$out/qlip-pixels"
stage qlip-shapes configs/nano/qlip-shapes.toml --set "data.pictures.path=$photos" --set "start=$out/qlip-more"
stage qlip-words configs/nano/qlip-words.toml --set "data.pictures.path=$photos" --set "start=$out/qlip-shapes"
stage unified-shapes configs/nano/unified-shapes.toml --set "data.pictures.path=$photos" --set "$words" --set "image_tokenizer=$out/qlip-words" \
  --set "start=$out/unified-kept"
stage qlip-last configs/nano/qlip-last.toml --set "data.pictures.path=$photos" --set "start=$out/qlip-words"
stage unified-last configs/nano/unified-last.toml --set "data.pictures.path=$photos" --set "$words" --set "image_tokenizer=$out/qlip-last" \
  --set "start=$out/unified-shapes"
rm -rf "$out/model"
"$u" export "$out/unified-last" "$out/model"
target/release/eval run --tasks scenes --model "$out/model" --out "$out/scenes" --resume
echo "| stage | updates | seconds | last losses |"
echo "|---|---|---|---|"
for s in "${stages[@]}"; do
  python3 - "$s" "$out/$s" <<'P' 2>/dev/null || echo "| $s | see $out/$s/summary.json | | |"
import json, sys
name, folder = sys.argv[1:]
s = json.load(open(folder + "/summary.json"))
seconds, last = 0.0, 0.0
for line in open(folder + "/metrics.jsonl"):
    t = json.loads(line)["seconds"]
    seconds += t - last if t >= last else t      # it starts again when a run is resumed
    last = t
losses = ", ".join(f"{k} {v:.4f}" for k, v in s["last"].items() if "loss" in k or k in ("mse", "align"))
print(f"| {name} | {s['steps']} | {seconds:.0f} | {losses} |")
P
done
cat "$out/scenes/report.md"
