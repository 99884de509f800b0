# What the scripts share that train and measure whole tables unattended; they set `runs` and source this.
mkdir -p "$runs"
cargo build --release --quiet --workspace --bins --examples
# trainings that go on stay with the program that began them
[ -e "$runs/unified" ] || cp target/release/unified "$runs/"

# xargs starts nothing more after 255
failed() {
  echo "$1: $(tail -n1 "$1")" >&2
  exit 255
}

# train NAME CONFIG [KEY=VALUE ..]: one training on one core, unless it is done
train() {
  local name=$1 config=$2 set=()
  shift 2
  for pair in "$@"; do set+=(--set "$pair"); done
  [ -e "$runs/$name/summary.json" ] && return
  RAYON_NUM_THREADS=1 "$runs/unified" train "$config" --out "$runs/$name" --resume "${set[@]}" 2>"$runs/$name.log" ||
    failed "$runs/$name.log"
}

# row FILE COMMAND ..: what a command prints, whole or not at all; done once
row() {
  local file=$1
  shift
  [ -s "$file" ] && return
  "$@" >"$file.part" 2>"$file.log" || failed "$file.log"
  mv "$file.part" "$file"
}

# keys of the best tokenizer of docs/ablation.md
quantizer=model.vision_config.quantizer_cfg
groups="$quantizer.persample_entropy_compute=factorised $quantizer.gamma_1=3.0"
best="loss.quantized_alignment=1.0 loss.commitment=0.3 $groups"

# each COMMAND ..: all of them, a core each
each() { printf '%s\0' "$@" | xargs -0 -P "$(nproc)" -I{} bash -euo pipefail -c '{}'; }

export -f train row failed
export runs
