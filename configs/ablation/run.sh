#!/usr/bin/env bash
# The ablation table of docs/ablation.md: trains a tokenizer for each row, measures it, and prints the table.
# configs/ablation/run.sh [RUNS]; what RUNS (runs/ablation) already holds is not done again. A core works on a row of its
# own, which gets more rows done than all cores on one.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-runs/ablation}
photos=../shared/data/cifar10
export RAYON_NUM_THREADS=1
mkdir -p "$runs"
cargo build --release --quiet --workspace --bins
cargo run --release --quiet -p unified --example random_trunk -- "$runs/trunk.safetensors"
# rows that are being made stay as they are while the code changes
cp target/release/unified target/release/eval "$runs/"

# row NAME WORDS CONFIG [KEY=VALUE ..]: trains and measures one row
row() {
  local name=$1 words=$2 config=$3
  shift 3
  local set=()
  for pair in "$@"; do set+=(--set "$pair"); done
  [ -f "$runs/$name.md" ] && return
  [ -f "$runs/$name/summary.json" ] ||
    "$runs/unified" train "$config" --out "$runs/$name" --resume "${set[@]}" 2>"$runs/$name.log"
  "$runs/eval" qlip --model "$runs/$name" --photos "$photos" --limit 4000 --probe 10000 --row "$words" >"$runs/$name.part"
  mv "$runs/$name.part" "$runs/$name.md"
}

one=configs/ablation/stage1.toml
two=configs/ablation/stage2.toml
teacher=unified/assets/nano/qlip
patchgan='adversary={ net = { kind = "patch", width = 32, layers = 2 }, game = "hinge", start = 100 }'
trunk="lpips={ net = \"alex\", trunk = \"$runs/trunk.safetensors\" }"
jobs=(
  "row base 'stage 1: pixels and alignment' $one"
  "row pixels 'pixels alone' $one loss.alignment=0.0"
  "row align 'alignment alone' $one loss.reconstruction=0.0"
  "row stage2 'stage 1, then stage 2' $two start=$runs/base"
  "row quantized-alignment '+ alignment of quantised tokens' $one loss.quantized_alignment=1.0"
  "row quantized-distillation '+ distillation into quantised tokens' $one teacher=$teacher loss.quantized_distillation=1.0"
  "row distillation '+ distillation into the class token' $one teacher=$teacher loss.distillation=1.0"
  "row proximal '+ 300 proximal steps' $one loss.proximal_steps=300 loss.proximal_ramp=100"
  "row levels '+ features of layers 2 and 3' $one 'model.vision_config.quantizer_levels=[2, 3]'"
  "row bits36 '36 bits' $one model.vision_config.quantizer_cfg.embed_dim=36 model.vision_config.quantizer_cfg.group_size=9"
  "row bits128 '128 bits' $one model.vision_config.quantizer_cfg.embed_dim=128 model.vision_config.quantizer_cfg.group_size=8"
  "row adversarial 'stage 2 with a PatchGAN' $two start=$runs/base loss.adversarial=0.02 '$patchgan'"
  "row gram 'stage 2 with Gram matrices' $two start=$runs/base loss.gram=0.1 '$trunk'"
)
export -f row
export runs photos
# rows that start from the base wait for it
eval "${jobs[0]}" &
base=$!
eval "${jobs[1]}"
wait $base
printf '%s\0' "${jobs[@]:2}" | xargs -0 -P "$(nproc)" -I{} bash -euo pipefail -c '{}'

{
  echo '| training | PSNR, dB | SSIM | zero-shot, % | probe of quantised tokens, % | before quantisation, % | code entropy, bits | updates/s | peak memory, MiB |'
  echo '|---|---|---|---|---|---|---|---|---|'
  for job in "${jobs[@]}"; do
    name=${job#row }
    cat "$runs/${name%% *}.md"
  done
} >"$runs/table.md"
cat "$runs/table.md"
