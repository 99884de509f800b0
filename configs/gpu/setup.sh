#!/usr/bin/env bash
# The CUDA toolkit from PyPI, and `cargo check --features cuda` with it: configs/gpu/setup.sh [FOLDER]. No GPU is needed to check.
# Then, to build: source FOLDER/env, cargo build --release --features cuda. A program built so starts only where a driver is.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-$HOME/.cache/unified-cuda}
# the newest toolkit whose PTX drivers of CUDA 13.0 take
version=13.0.3.0
if [ ! -e "$folder/env" ]; then
  python3 -m venv "$folder"
  "$folder/bin/pip" install --quiet "cuda-toolkit[nvcc,cudart,cccl,curand,cublas,nvrtc]==$version"
  home=$(echo "$folder"/lib/python3*/site-packages/nvidia/cu13)
  # wheels have no unversioned names of libraries
  for l in cudart curand cublas cublasLt nvrtc; do
    ln -sf "$(basename "$(ls "$home"/lib/lib$l.so.[0-9]* | head -1)")" "$home/lib/lib$l.so"
  done
  cat > "$folder/env" <<ENV
export CUDA_HOME=$home PATH=$home/bin:\$PATH CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-90} CUDARC_CUDA_VERSION=13000 RUSTFLAGS=
ENV
fi
# shellcheck disable=SC1091
source "$folder/env"
nvcc --version | tail -2
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/cuda} cargo check --release --features cuda -p unified-mm -p unified-eval
