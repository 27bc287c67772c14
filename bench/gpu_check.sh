#!/usr/bin/env bash
# The one command for a machine with a GPU: builds, proves and measures the CUDA backend.
#
#   bench/gpu_check.sh all                 # everything, one stage after another
#   bench/gpu_check.sh build tests         # stages one by one; each takes less than 8 minutes
#   bench/gpu_check.sh rehearse            # without a GPU: every benchmark once on the emulator, nothing is measured
#
# Stages: build tests sanitize micro decode-350M decode-2B decode-6B prefill report. One that fails says so and the others
# go on. Needs nvcc, torch with CUDA, pytest, transformers, cmake, ninja and pybind11, no network and no git.
#   OUT      where results go (default bench/results)
#   COMMIT   what to call the sources (default: what git says)
#   SECONDS_A_STAGE   default 420; what matters least is left out
set -uo pipefail
cd "$(dirname "$0")/.."

STAGES=(build tests sanitize micro decode-350M decode-2B decode-6B prefill report)
BUDGET=${SECONDS_A_STAGE:-420}
export PATH="$PATH:/usr/local/cuda/bin" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
logs=${OUT:-build/gpu_check}
mkdir -p "$logs"

say() { printf '\n== %s\n' "$*"; }

needs_gpu() {
  nvidia-smi -L 2>/dev/null | grep -q GPU && return
  echo "no GPU: nvidia-smi is missing or lists none; 'bench/gpu_check.sh rehearse' goes as far as it goes without one"
  return 3
}

# In place, so that tests and benchmarks run on this folder.
build() {
  needs_gpu || return
  CODEGEN_FAST_CUDA=on timeout $((BUDGET + 20)) python3 -m pip install -v --no-build-isolation --no-deps -e . \
    >"$logs/build.log" 2>&1 || { tail -n 40 "$logs/build.log"; return 1; }
  python3 -c 'from codegen_fast import ops; print(ops.build_info(), *ops.cuda_devices())'
}

# Every other stage works on a fresh machine too.
needs_build() {
  needs_gpu || return
  python3 -c 'from codegen_fast import ops; assert ops.build_info()["cuda"].startswith("on ")' 2>/dev/null && return
  say "not built yet"
  build
}

on_gpu=(-k "cuda and not emulated" -p no:cacheprovider -p bench.gpu.within)

tests() {
  needs_build || return
  local parallel=()
  python3 -c 'import xdist' 2>/dev/null && parallel=(-n 6)
  timeout $((BUDGET + 20)) python3 -m pytest -q "${on_gpu[@]}" "${parallel[@]}" --within $((BUDGET - 60)) \
    --junitxml "$logs/tests.xml" tests 2>&1 | tail -n 40
  python3 -m bench.gpu.proofs tests "$logs/tests.xml"
}

# Only our kernels are watched: torch's are not ours to prove. Pages and operands come straight from the driver, so that
# a neighbour in torch's pool hides no access out of bounds.
sanitize() {
  needs_build || return
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer was not found; it is part of the CUDA toolkit"; return 1; }
  local arguments=()
  for tool in memcheck racecheck synccheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout $((BUDGET / 3)) compute-sanitizer --tool "$tool" --report-api-errors no \
      --kernel-name kns=codegen_fast --print-limit 20 --target-processes application-only \
      python3 -m pytest -q "${on_gpu[@]}" --within $((BUDGET / 3 - 50)) --spread \
      tests/test_ops_rows.py tests/test_ops_pack.py tests/test_ops_products.py tests/test_ops_attention.py \
      tests/test_ops_edges.py tests/test_ops_idle.py tests/test_sampling_op.py tests/test_advance_op.py \
      >"$logs/$tool.log" 2>&1
    arguments+=("$tool=$logs/$tool.log")
  done
  python3 -m bench.gpu.proofs sanitize "${arguments[@]}"
}

measure() {  # a module of bench.gpu and its arguments
  needs_build || return
  timeout $((BUDGET + 25)) python3 -m "bench.gpu.$1" --budget $((BUDGET - 40)) "${@:2}"
}

report() {
  python3 -m bench.gpu.gates >/dev/null || return
  python3 -m bench.gpu.draw || true  # without matplotlib or results there are no plots
}

rehearse() {
  for module in micro decode prefill; do
    say "rehearsing $module"
    timeout 600 python3 -m "bench.gpu.$module" --rehearse || return
  done
}

run() {
  case $1 in
    build | tests | sanitize | report | rehearse) "$1" ;;
    micro | prefill) measure "$1" ;;
    decode-*) measure decode --model "${1#decode-}" ;;
    *) echo "no such stage: $1; there are ${STAGES[*]}, all and rehearse"; return 2 ;;
  esac
}

[ $# -gt 0 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2; }
[ "$1" = all ] && set -- "${STAGES[@]}"
table=() failed=0
for stage in "$@"; do
  say "$stage"
  begin=$SECONDS
  run "$stage"
  status=$?
  verdict=ok
  [ $status -eq 0 ] || { verdict="FAILED ($status)"; failed=1; }
  table+=("$(printf '%-12s %-12s %4d s' "$stage" "$verdict" $((SECONDS - begin)))")
done
say "summary"
python3 -m bench.gpu.summary
printf '%s\n' "${table[@]}"
exit $failed
