#!/usr/bin/env bash
# Everything that needs a GPU, in one command on a machine that has one:
#
#   tools/gpu_check.sh [build] [test] [sanitize] [bench]        (all of them by default)
#
# Builds both cores with the tools at hand (no network), runs tests/gpu and the operator suite on the GPU, runs
# compute-sanitizer over small cases of every operator, benchmarks on the GPU, and writes
# ${OUT:-benchmarks/results}/<device>.jsonl. Ends with a summary; exits non-zero if any step failed.
#
# PYTHON=python3      an interpreter that has torch, Triton, pytest, hypothesis, pybind11, cmake, ninja and setuptools
# BENCH_SECONDS=2     time for one benchmark case in one mode
# STEP_TIMEOUT=900    seconds that one step may take
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

python=${PYTHON:-python3}
out=$(realpath -m "${OUT:-benchmarks/results}")
seconds=${BENCH_SECONDS:-2}
limit=${STEP_TIMEOUT:-900}
steps=("$@")
[ "${#steps[@]}" -gt 0 ] || steps=(build test sanitize bench)
for step in "${steps[@]}"; do
  case $step in
    build | test | sanitize | bench) ;;
    *)
      echo "gpu_check: unknown step '$step'; expected build, test, sanitize, bench" >&2
      exit 2
      ;;
  esac
done

environment=build/gpu-check
here=$environment/bin/python
summary=()
failed=0

# Run one named command under the time limit and keep its verdict for the summary.
attempt() {
  local name=$1 start=$SECONDS status
  shift
  echo "=== $name"
  timeout --kill-after=20 "$limit" "$@"
  status=$?
  if [ "$status" = 0 ]; then
    summary+=("passed  $name ($((SECONDS - start)) s)")
  else
    [ "$status" = 124 ] && name="$name, stopped after $limit s"
    summary+=("FAILED  $name (exit status $status)")
    failed=1
  fi
  return "$status"
}

finish() {
  echo
  echo "=== summary"
  printf '%s\n' "${summary[@]}"
  exit "$failed"
}

wanted() {
  local step
  for step in "${steps[@]}"; do [ "$step" = "$1" ] && return 0; done
  return 1
}

missing=$("$python" - <<'PY'
import importlib.util

needed = ("torch", "triton", "numpy", "pytest", "hypothesis", "setuptools", "pybind11")
print(*(name for name in needed if importlib.util.find_spec(name) is None))
PY
) || exit 2
if [ -n "$missing" ]; then
  echo "gpu_check: $python lacks: $missing" >&2
  exit 2
fi
device=$("$python" - <<'PY'
import re
import sys

import torch

if not torch.cuda.is_available():
    sys.exit("gpu_check: torch finds no CUDA device")
print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-"))
PY
) || exit 2
echo "device: $device"
mkdir -p "$out"

# A virtual environment of its own, in sight of the machine's packages: the machine's Python stays as it is.
if wanted build || [ ! -x "$here" ]; then
  rm -rf "$environment"
  "$python" -m venv --without-pip "$environment" || exit 2
  site=$("$here" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$python" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' >"$site/machine.pth"
  GMKERNELS_REQUIRE_NATIVE=1 attempt "build" \
    "$python" -m pip --python "$here" install --no-build-isolation --no-deps --editable . || finish
fi
"$here" -m gmkernels || exit 2

if wanted test; then
  tests=(tests/ops)
  [ -n "$(find tests/gpu -name 'test_*.py' -print -quit 2>/dev/null)" ] && tests=(tests/gpu tests/ops)
  GMKERNELS_REQUIRE=cpu,triton,cuda attempt "tests: ${tests[*]}" \
    "$here" -m pytest -q -p no:cacheprovider "${tests[@]}"
fi

if wanted sanitize; then
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck initcheck; do
      attempt "compute-sanitizer $tool" \
        compute-sanitizer --tool "$tool" --error-exitcode 99 --print-limit 20 "$here" tools/small_cases.py
    done
  else
    summary+=("FAILED  compute-sanitizer was not found")
    failed=1
  fi
fi

if wanted bench; then
  attempt "benchmarks" \
    "$here" -m benchmarks run all --device cuda --seconds "$seconds" --json "$out/$device.jsonl" &&
    attempt "report" "$here" -m benchmarks report "$out/$device.jsonl"
fi

finish
