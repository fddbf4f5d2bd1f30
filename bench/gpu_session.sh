#!/usr/bin/env bash
# Everything that needs a GPU, in calls that each end within nine minutes.
#
#   bash bench/gpu_session.sh prepare    on a machine with the test data: copies what `tests` reads
#                                        from $CASCADE_DATA (default: ../shared/data) to build/gpu-data
#   bash bench/gpu_session.sh tests      pytest -m gpu: kernels, backend, graphs, engine
#   bash bench/gpu_session.sh sanitize   compute-sanitizer memcheck and racecheck over the kernel tests
#   bash bench/gpu_session.sh bench      operations and the 7B shape, JSON
#
# Results go to $OUT (default: build/gpu) as they come. An extension without CUDA is built here first,
# offline and in place, for the GPU that is there: it needs nvcc, g++, cmake, ninja and pybind11.
# PYTHON names the interpreter (one with torch), LIMIT the seconds of a call, JOBS how many test files
# run at a time, each in a process of its own: an error that a GPU does not recover from ends one of
# them. FILES (of `tests` and `sanitize`) names some of them. DRY_RUN=1 needs no GPU: it prints what
# needs one, checks that those commands exist and find their tests, and does the rest.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:?prepare, tests, sanitize or bench}
[ -x .venv/bin/python ] && PYTHON=${PYTHON:-.venv/bin/python}
PYTHON=${PYTHON:-$(command -v python3)}
OUT=${OUT:-build/gpu}
LIMIT=${LIMIT:-530}
JOBS=${JOBS:-4}
DRY_RUN=${DRY_RUN:-}
DATA=build/gpu-data
PATH=$(dirname "$PYTHON"):$PATH # where pip puts cmake and ninja
command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
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

# Runs pytest (behind the words of a command in front of it) over each file by itself, JOBS at a
# time, all within a number of seconds; what each says goes to one log when it has ended. Fails when
# one fails; a file without tests for a GPU does not.
each_file() {
  local seconds=$1 log=$2 files=$3
  shift 3
  if [ -n "$DRY_RUN" ]; then
    echo "within $seconds s, into $log, each of: $files"
    echo "  $*"
    return
  fi
  : >"$log"
  # shellcheck disable=SC2016
  ENDS=$((SECONDS + seconds)) BEGAN=$(date +%s) AT=$SECONDS LOG=$log \
    xargs -P "$JOBS" -I{} bash -c '
      part=$(mktemp); status=0
      rest=$((ENDS - AT - $(date +%s) + BEGAN))
      timeout --kill-after=10 "$((rest > 1 ? rest : 1))" "${@:2}" "$1" >"$part" 2>&1 || status=$?
      [ $status = 5 ] && status=0
      { flock 9; echo "== $1: exit $status"; cat "$part"; } >>"$LOG" 9<"$LOG"
      echo "== $1: exit $status, $(tail -1 "$part")"
      if [ $status != 0 ]; then grep -E "^(FAILED|ERROR|E  )|Error|ERROR SUMMARY" "$part" | head -12; fi
      rm "$part"
      [ $status = 0 ]' each {} "$@" <<<"${files// /$'\n'}"
}

# In place and without setuptools, for the GPU that is there (else for all).
build() {
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 || true)
  cmake -S . -B build/gpu-cmake -G Ninja -DCMAKE_BUILD_TYPE=Release -DCE_CUDA=ON \
    ${capability:+-DCMAKE_CUDA_ARCHITECTURES=${capability/./}-real} \
    -DPython_EXECUTABLE="$("$PYTHON" -c 'import sys; print(sys.executable)')" \
    -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/cascade_engine" &&
    cmake --build build/gpu-cmake --target _C -j "$(nproc)" || return
  "$PYTHON" -c 'import cascade_engine.kernels' 2>/dev/null || ln -s ../kernels cascade_engine/kernels
}

mkdir -p "$OUT"
[ -d "$DATA" ] && export CASCADE_DATA=$PWD/$DATA

machine() {
  date
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total --format=csv ||
    echo "no nvidia-smi"
  "$PYTHON" -c 'import sys, torch
print("python", sys.version.split()[0], "torch", torch.__version__, "cuda", torch.version.cuda)
try:
    from cascade_engine import _C, kernels
    print("kernels built:", "yes" if hasattr(_C, "cuda") else "without CUDA")
except ImportError as error:
    print("kernels built: no,", error)'
}
machine 2>&1 | tee "$OUT/machine.txt"

if ! grep -q "kernels built: yes" "$OUT/machine.txt"; then
  if [ -n "$DRY_RUN" ]; then
    echo "to build: $(declare -f build)"
  else
    export -f build
    export PYTHON
    timeout "$(left)" bash -c build >"$OUT/build.log" 2>&1 || { tail -40 "$OUT/build.log"; exit 1; }
    echo "built in $SECONDS s"
    machine 2>&1 | tee "$OUT/machine.txt"
  fi
fi

case $mode in
  tests)
    [ -d "$DATA" ] || echo "no $DATA (see prepare): the tests of trained models will be skipped"
    files=${FILES:-$(grep -lE "(run|graphs): Launcher|mark.gpu" tests/cuda/test_*.py tests/kernels/test_*.py)}
    if [ -n "$DRY_RUN" ]; then
      # shellcheck disable=SC2086
      "$PYTHON" -m pytest -m gpu -q --collect-only $files | tail -3
    fi
    each_file "$(left)" "$OUT/tests.log" "$(echo $files)" \
      "$PYTHON" -m pytest -m gpu -q -rs --durations=5 -p no:cacheprovider
    ;;
  sanitize)
    # Small shapes suffice: the tools are a hundred times slower than the kernels. Without torch's
    # caching of memory each tensor is an allocation, behind which memcheck sees. torch asks the
    # driver for what it may not have: errors of its calls are not the kernels'.
    files=${FILES:-${KERNEL_TESTS[*]}}
    # shellcheck disable=SC2086
    ls $files >/dev/null
    status=0
    for tool in memcheck racecheck; do
      seconds=$(left)
      [ $tool = memcheck ] && seconds=$((seconds / 2))
      quiet=()
      [ $tool = memcheck ] && quiet=(--report-api-errors no)
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 each_file "$seconds" "$OUT/$tool.log" "$files" \
        compute-sanitizer --tool $tool "${quiet[@]}" --error-exitcode 9 \
        --target-processes all "$PYTHON" -m pytest -m gpu -q --maxfail=3 -p no:cacheprovider \
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
