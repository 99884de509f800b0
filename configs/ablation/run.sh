#!/usr/bin/env bash
# The ablation table of docs/ablation.md: trains a tokenizer for each row, measures it, and prints the table.
# configs/ablation/run.sh [RUNS]; what RUNS (runs/ablation) already holds is not done again. Each row has a core of its
# own, which gets more rows done than all cores on one; speed and memory are measured apart, a row after the other.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-runs/ablation}
photos=../shared/data/cifar10
. configs/tables.sh
target/release/examples/random_trunk "$runs/trunk.safetensors"

# a job is NAME WORDS CONFIG [KEY=VALUE ..]
learn() { train "$1" "${@:3}"; }

# a few updates of the same in its later phase, alone on the machine
speed() {
  local name=$1 out="$runs/speed/$1" config=$3
  shift 3
  local set=(--set run.steps=16)
  for pair in "$@"; do set+=(--set "$pair"); done
  case "$*" in
    *proximal*) set+=(--set loss.proximal_steps=1 --set loss.proximal_ramp=0) ;;
  esac
  [ -f "$out/summary.json" ] && return
  rm -rf "$out"
  "$runs/unified" train "$config" --out "$out" "${set[@]}" 2>"$runs/$name.speed.log" || failed "$runs/$name.speed.log"
}

# asked OUT MODEL TASKS [OPTION ..]: a run of eval, whole or gone on with
asked() {
  local out=$1 model=$2 tasks=$3
  shift 3
  [ -f "$out/summary.json" ] && return
  RAYON_NUM_THREADS=1 target/release/eval run --tasks "$tasks" --model "$model" --data "$photos" --out "$out" --resume "$@" \
    >"$out.log" 2>&1 || failed "$out.log"
}

columns=reconstruction.psnr@rgb8:2,reconstruction.ssim@gauss11:3,imagefolder.acc1@clip_benchmark:1%
columns=$columns,probe.quantised@linear_probe:1%,probe.latents@linear_probe:1%,reconstruction.code_entropy@bits_a_token:1

# told FILE MODEL WORDS [OPTION ..]: the row of a model; one that was trained without words has no zero-shot classes
told() {
  local file=$1 model=$2 words=$3 tasks=reconstruction,imagefolder,probe
  shift 3
  case "$file" in pixels*) tasks=reconstruction,probe ;; esac
  asked "$runs/eval/$file" "$model" "$tasks" "$@"
  row "$runs/$file.md" target/release/eval table "$runs/eval/$file" --metrics "$columns" --as "$words" --no-head
}

measure() {
  # 8,192 columns: a probe of as many pictures as the others have would take an hour
  if [ "$1" = bits128 ]; then told "$1" "$runs/$1" "$2" --limit 1000; else told "$1" "$runs/$1" "$2"; fi
}

# the last weights of a training instead of their average
raw() {
  [ -f "$runs/raw/model.safetensors" ] || "$runs/unified" export --raw --dtype f32 "$runs/base" "$runs/raw" >"$runs/raw.log" 2>&1 || failed "$runs/raw.log"
  told base.raw "$runs/raw" 'stage 1, the last weights instead of their average'
}

# number KEY SUMMARY
number() { sed -n "s/^  \"$1\": \([0-9.]*\).*/\1/p" "$2"; }

one=configs/ablation/stage1.toml
two=configs/ablation/stage2.toml
teacher=unified/assets/nano/qlip
adversary='adversary={ net = { kind = "patch", width = 32, layers = 3 }, game = "hinge" }'
trunk="lpips={ net = \"alex\", trunk = \"$runs/trunk.safetensors\" }"
jobs=(
  "base 'stage 1: pixels and alignment' $one"
  "base2 'the same, other seeds' $one run.seed=2"
  "pixels 'pixels alone' $one loss.alignment=0.0"
  "align 'alignment alone' $one loss.reconstruction=0.0"
  "stage2 'stage 1, then stage 2' $two start=$runs/base"
  "quantized-alignment '+ alignment of quantised tokens' $one loss.quantized_alignment=1.0"
  "gamma '+ gamma_1 = 3' $one $quantizer.gamma_1=3.0"
  "groups '+ gamma_1 = 3, entropies of whole groups' $one $groups"
  "aligned-groups '+ both, alignment of quantised tokens, commitment 0.3' $one $best"
  "quantized-distillation '+ distillation into quantised tokens' $one teacher=$teacher loss.quantized_distillation=1.0"
  "distillation '+ distillation into the class token' $one teacher=$teacher loss.distillation=1.0"
  "proximal '+ 200 proximal steps' $one loss.proximal_steps=200 loss.proximal_ramp=50"
  "levels '+ features of layers 2 and 3' $one 'model.vision_config.quantizer_levels=[2, 3]'"
  "bits36 '36 bits' $one $quantizer.embed_dim=36 $quantizer.group_size=9"
  "bits128 '128 bits (probes of 1,000 photographs)' $one $quantizer.embed_dim=128 $quantizer.group_size=8"
  "adversary 'stage 2 with a discriminator' $two start=$runs/base loss.adversarial=0.1 '$adversary'"
  "gram 'stage 2 with Gram matrices' $two start=$runs/base loss.gram=0.1 '$trunk'"
)
mkdir -p "$runs/eval"
export -f learn told measure asked raw
export photos columns
each "learn ${jobs[0]}" # others start from it
each "${jobs[@]/#/learn }"
each "${jobs[@]/#/measure }" raw
for job in "${jobs[@]}"; do eval "speed $job"; done

{
  echo '| training | PSNR, dB | SSIM | zero-shot, % | probe of quantised tokens, % | before quantisation, % | code entropy, bits | updates/s | peak memory, MiB |'
  echo '|---|---|---|---|---|---|---|---|---|'
  for job in "${jobs[@]}"; do
    name=${job%% *}
    summary=$runs/speed/$name/summary.json
    rate=$(awk "BEGIN { printf \"%.2f\", $(number ran "$summary") / $(number seconds "$summary") }")
    echo "$(cat "$runs/$name.md") $rate | $(number peak_memory_mib "$summary") |"
    if [ "$name" = base ]; then echo "$(cat "$runs/base.raw.md") | |"; fi
  done
} >"$runs/table.md"
cat "$runs/table.md"
