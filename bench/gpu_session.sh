#!/usr/bin/env bash
# Everything that needs a GPU, in calls that each end within nine minutes.
#
#   bash bench/gpu_session.sh tests      pytest -m gpu: kernels, backend, engine
#   bash bench/gpu_session.sh sanitize   compute-sanitizer memcheck and racecheck over the kernel tests
#   bash bench/gpu_session.sh bench      kernels and the 7B shape, JSON
#
# Results go to $OUT (default: build/gpu). Without a built extension it is built here, offline: it
# needs nvcc, g++, cmake, ninja and pybind11. PYTHON names the interpreter (one with torch).
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:?tests, sanitize or bench}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
OUT=${OUT:-build/gpu}
LIMIT=${LIMIT:-520}
mkdir -p "$OUT"

{
  date
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total --format=csv
  "$PYTHON" -c 'import torch; print("torch", torch.__version__, "cuda", torch.version.cuda)'
} | tee "$OUT/machine.txt"

if ! "$PYTHON" -c 'from cascade_engine import _C; _C.cuda' 2>/dev/null; then
  export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
  CASCADE_CMAKE_ARGS="-DCE_CUDA=ON" "$PYTHON" setup.py build_ext --inplace >"$OUT/build.log" 2>&1 ||
    { tail -30 "$OUT/build.log"; exit 1; }
fi

case $mode in
  tests)
    timeout "$LIMIT" "$PYTHON" -m pytest -m gpu -q tests/cuda tests/kernels \
      --junitxml="$OUT/tests.xml" 2>&1 | tee "$OUT/tests.log"
    ;;
  sanitize)
    # The small shapes of the tests suffice: the tools are a hundred times slower than the kernels.
    for tool in memcheck racecheck; do
      timeout $((LIMIT / 2)) compute-sanitizer --tool "$tool" --error-exitcode 9 \
        "$PYTHON" -m pytest -m gpu -q -x tests/cuda/test_linear.py tests/cuda/test_attention.py \
        tests/cuda/test_forward_ops.py tests/cuda/test_sampling.py tests/cuda/test_drafting.py \
        -k "not bits_do_not_depend" 2>&1 | tee "$OUT/$tool.log"
    done
    ;;
  bench)
    timeout "$LIMIT" "$PYTHON" -m bench.ops --device cuda --graph --cold-l2 --json "$OUT/ops.json" 2>&1 |
      tee "$OUT/bench.log"
    ;;
  *)
    echo "unknown mode $mode: tests, sanitize or bench" >&2
    exit 2
    ;;
esac
