#!/usr/bin/env bash
# What `make gpu-check` runs: with this machine's own Python and packages, and no network, install in place, run the
# tests that need a GPU, and the benchmarks. A failing step does not stop the next; the status tells of any.
# Ends within 8 minutes. Everything it finds is in $OUT.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu-check}
export python=${PYTHON:-python3}
mkdir -p "$out"
# Python finds the checkout even where pip may not write.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=()

step() { # name, seconds, command...
  local name=$1 seconds=$2 status=0
  shift 2
  echo "== $name"
  timeout --signal=INT --kill-after=10 "$seconds" "$@" 2>&1 | tee "$out/$name.log" || status=$?
  if ((status)); then
    echo "== $name failed with status $status"
    failed+=("$name")
  fi
}

install() {
  local pip=("$python" -m pip install --no-build-isolation --no-deps --no-index --editable .)
  "${pip[@]}" || "${pip[@]}" --break-system-packages || "$python" setup.py build_ext --inplace
}

machine() {
  nvidia-smi || rocm-smi
  "$python" --version
  "$python" -m pip list
  "$python" -c 'import torch; torch.cuda.is_available() or exit("PyTorch sees no GPU here")'
}
export -f install machine

step machine 30 bash -c machine
step install 110 bash -c install
step tests 120 "$python" -m pytest -m gpu --junitxml="$out/tests.xml"
step memory 40 "$python" benchmarks/memory.py --device cuda --output "$out"
step throughput 180 "$python" benchmarks/throughput.py --device cuda --output "$out"

if ((${#failed[@]})); then
  echo "failed: ${failed[*]}; see $out" | tee "$out/summary.log"
  exit 1
fi
echo "all steps passed; see $out" | tee "$out/summary.log"
