#!/usr/bin/env bash
# Everything that needs a GPU, in calls that each end within nine minutes.
#
#   bash bench/gpu_session.sh prepare    on a machine with the test data: copies what `tests` reads
#                                        from $CASCADE_DATA (default: ../shared/data) to build/gpu-data
#   bash bench/gpu_session.sh tests      pytest -m gpu: kernels, backend, graphs, engine
#   bash bench/gpu_session.sh sanitize   compute-sanitizer memcheck and racecheck over the kernel tests
#   bash bench/gpu_session.sh bench      operations and the 7B shape, JSON
#
# Results go to $OUT (default: build/gpu). An extension without CUDA is built here first, offline: it
# needs nvcc, g++, cmake, ninja, pybind11 and setuptools. PYTHON names the interpreter (one with
# torch), LIMIT the seconds of a call. DRY_RUN=1 needs no GPU: it prints what needs one, checks that
# those commands exist and find their tests, and does the rest.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:?prepare, tests, sanitize or bench}
[ -x .venv/bin/python ] && PYTHON=${PYTHON:-.venv/bin/python}
PYTHON=${PYTHON:-$(command -v python3)}
OUT=${OUT:-build/gpu}
LIMIT=${LIMIT:-530}
DRY_RUN=${DRY_RUN:-}
DATA=build/gpu-data
PATH=$(dirname "$PYTHON"):$PATH # where pip puts cmake and ninja
KERNEL_TESTS=(tests/cuda/test_linear.py tests/cuda/test_attention.py
  tests/cuda/test_forward_ops.py tests/cuda/test_sampling.py tests/cuda/test_drafting.py
  tests/cuda/test_draft_trees.py tests/cuda/test_rejection_kernel.py
  tests/cuda/test_runners_up.py tests/cuda/test_segments.py)
export PATH PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

case $mode in
  prepare | tests | sanitize | bench) ;;
  *)
    echo "unknown mode $mode: prepare, tests, sanitize or bench" >&2
    exit 2
    ;;
esac

if [ "$mode" = prepare ]; then
  from=${CASCADE_DATA:-../shared/data}
  [ -d "$from/stories260k" ] || { echo "no stories260k in $from; set CASCADE_DATA" >&2; exit 1; }
  mkdir -p "$DATA"
  cp -R "$from/stories260k" "$DATA/"
  chmod -R u+w "$DATA"
  echo "take $DATA along: it is ignored by git"
  exit
fi

# Seconds until this call must end; at least one, so that a part that is too late says so.
left() { echo $((LIMIT - SECONDS > 1 ? LIMIT - SECONDS : 1)); }

# Runs a command that needs a GPU, within a number of seconds, into a log.
on_gpu() {
  local seconds=$1 log=$2
  shift 2
  if [ -n "$DRY_RUN" ]; then
    echo "within $seconds s, into $log: $*"
  else
    timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee "$log"
  fi
}

mkdir -p "$OUT"
[ -d "$DATA" ] && export CASCADE_DATA=$PWD/$DATA

{
  date
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total --format=csv ||
    [ -n "$DRY_RUN" ]
  "$PYTHON" -c 'import sys, torch
print("python", sys.version.split()[0], "torch", torch.__version__, "cuda", torch.version.cuda)
try:
    from cascade_engine import _C, kernels
    print("kernels built:", "yes" if hasattr(_C, "cuda") else "without CUDA")
except ImportError as error:
    print("kernels built: no,", error)'
} 2>&1 | tee "$OUT/machine.txt"

if ! grep -q "kernels built: yes" "$OUT/machine.txt"; then
  install=("$PYTHON" -m pip install --no-index --no-build-isolation --no-deps --editable .)
  if [ -n "$DRY_RUN" ]; then
    echo "to build: ${install[*]}"
  else
    CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) CASCADE_CMAKE_ARGS=-DCE_CUDA=ON \
      timeout "$(left)" "${install[@]}" -v >"$OUT/build.log" 2>&1 ||
      { tail -30 "$OUT/build.log"; exit 1; }
    echo "built in $SECONDS s"
  fi
fi

case $mode in
  tests)
    [ -d "$DATA" ] || echo "no $DATA (see prepare): the tests of trained models will be skipped"
    if [ -n "$DRY_RUN" ]; then
      "$PYTHON" -m pytest -m gpu -q --collect-only tests/cuda tests/kernels | tail -3
    fi
    on_gpu "$(left)" "$OUT/tests.log" "$PYTHON" -m pytest -m gpu -q -rs --durations=15 \
      tests/cuda tests/kernels --junitxml="$OUT/tests.xml"
    ;;
  sanitize)
    # Small shapes suffice: the tools are a hundred times slower than the kernels. Without torch's
    # caching of memory each tensor is an allocation, behind which memcheck sees.
    ls "${KERNEL_TESTS[@]}" >/dev/null
    status=0
    for tool in memcheck racecheck; do
      seconds=$(left)
      [ $tool = memcheck ] && seconds=$((seconds / 2))
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 on_gpu "$seconds" "$OUT/$tool.log" \
        compute-sanitizer --tool $tool --error-exitcode 9 --target-processes all \
        "$PYTHON" -m pytest -m gpu -q -x "${KERNEL_TESTS[@]}" \
        -k "not bits_do_not_depend and not engine_keeps" ||
        status=$?
    done
    exit $status
    ;;
  bench)
    if [ -n "$DRY_RUN" ]; then
      "$PYTHON" -c 'import bench.cuda_model, bench.ops'
    fi
    status=0
    on_gpu "$(($(left) / 2))" "$OUT/ops.log" \
      "$PYTHON" -m bench.ops --device cuda --graph --cold-l2 --json "$OUT/ops.json" || status=$?
    on_gpu "$(($(left) * 2 / 3))" "$OUT/model.log" \
      "$PYTHON" -m bench.cuda_model --json "$OUT/model.json" || status=$?
    on_gpu "$(left)" "$OUT/model-dependent.log" "$PYTHON" -m bench.cuda_model --dependent-launch \
      --against "$OUT/model.json" --peers none --json "$OUT/model-dependent.json" || status=$?
    exit $status
    ;;
esac
