#!/bin/sh
# build.sh FOLDER SITE_PACKAGES: builds stand-ins for NVIDIA's libraries from the headers and libraries that the
# CUDA build of torch has installed there, in two seconds. README.md says how they are used.
# A function that no C file defines is generated: it logs "PID NAME generated", and succeeds unless STUB_FAIL names it.
set -eu
out=$1 site=$2
here=$(cd "$(dirname "$0")" && pwd)
nvidia=$site/nvidia
mkdir -p "$out"
final=$(cd "$out" && pwd)
work=$(mktemp -d "$final/build.XXXXXX")
out=$work
trap 'rm -r "$work"' EXIT
# -O2: dlopen of cuda.c ends with a jump.
flags="-O2 -g0 -fPIC -w -I$here -I$nvidia/cu13/include -I$nvidia/nccl/include"

# OBJECT...: prints the functions that the objects define.
defined() {
  nm --defined-only "$@" | awk 'NF == 3 {print $3}' | sort -u
}

# WANTED OBJECT...: prints C code for the functions of the list WANTED that the objects lack.
generate() {
  wanted=$1
  shift
  defined "$@" >"$work/have"
  echo '#include "stub.h"'
  comm -23 "$wanted" "$work/have" | sed 's/.*/int &() { FIRST_GENERATED(); return stub_fault(__func__); }/'
}

# NAME REAL VERSION FILE...: builds a library with every function of the real one, and its symbol versions.
library() {
  name=$1 real=$2 version=$3
  shift 3
  objects= script=
  for file in "$@"; do
    gcc $flags -c "$here/$file" -o "$work/$file.o"
    objects="$objects $work/$file.o"
  done
  nm -D --defined-only "$real" | awk '$2 ~ /[TW]/ {sub(/@.*/, "", $3); print $3}' | sort -u >"$work/want"
  generate "$work/want" $objects >"$work/more.c"
  if [ -n "$version" ]; then
    echo "$version { global: *; };" >"$work/map"
    script=-Wl,--version-script=$work/map
  fi
  gcc $flags -shared -Wl,-soname,"$name" $script $objects "$work/more.c" -o "$out/$name" \
    -Wl,-rpath,'$ORIGIN' -L"$out" -l:libcuda.so.1 -lpthread
}

# The driver: the functions that cuda.h declares, with the new names that its #defines give them.
{
  echo 'const struct { const char *name, *real; } stub_names[] = {'
  sed -nE 's/^ *# *define (cu[A-Z][A-Za-z0-9_]*)[ \t]+(__CUDA_API_PT[DS]*Z?\()?(cu[A-Z][A-Za-z0-9_]*_v[0-9]+)\)?[ \t]*$/{"\1", "\3"},/p' \
    "$nvidia/cu13/include/cuda.h" | sort -u
  echo '{0, 0}};'
} >"$work/names.c"
echo '#include <cuda.h>' | gcc -E -P -I"$nvidia/cu13/include" - \
  | grep -oE '\bcu[A-Z][A-Za-z0-9_]* *\(' | tr -d ' (' | sort -u >"$work/driver"
gcc $flags -c "$here/cuda.c" -o "$work/cuda.o"
generate "$work/driver" "$work/cuda.o" >"$work/cuda_more.c"
gcc $flags -shared -Wl,-soname,libcuda.so.1 "$work/cuda.o" "$work/names.c" "$work/cuda_more.c" \
  -o "$out/libcuda.so.1" -ldl -lpthread

runtime=libcudart.so.13
library $runtime "$nvidia/cu13/lib/$runtime" $runtime cudart.c
# Other wheels (torchvision) contain copies of the runtime under other names.
copies=
for copy in "$site"/*.libs/libcudart*.so.13; do
  [ -e "$copy" ] || continue
  copies="$copies $(basename "$copy")"
  library "$(basename "$copy")" "$copy" $runtime cudart.c
done
library libcublas.so.13 "$nvidia/cu13/lib/libcublas.so.13" libcublas.so.13 cublas.c cublas_products.c
library libcublasLt.so.13 "$nvidia/cu13/lib/libcublasLt.so.13" libcublasLt.so.13 cublaslt.c
library libnccl.so.2 "$nvidia/nccl/lib/libnccl.so.2" "" nccl.c

# NVML: functions that nvidia-ml-py and torch look up and nvml.c lacks return "not supported".
gcc $flags -c "$here/nvml.c" -o "$work/nvml.o"
defined "$work/nvml.o" >"$work/have"
{
  grep -ohE '"nvml[A-Za-z0-9_]+"' "$site/pynvml.py" | tr -d '"'
  echo nvmlDeviceGetNvLinkRemoteDeviceType
  echo nvmlDeviceGetNvLinkRemotePciInfo_v2
} | sort -u | comm -23 - "$work/have" | sed 's/.*/int &() { return 3; }/' >"$work/nvml_more.c"
gcc $flags -shared -Wl,-soname,libnvidia-ml.so.1 "$work/nvml.o" "$work/nvml_more.c" -o "$out/libnvidia-ml.so.1"

for name in libcuda.so.1 $runtime $copies libcublas.so.13 libcublasLt.so.13 libnccl.so.2; do
  printf '%s:' "$final/$name"
done | sed 's/:$//' >"$work/preload"
# Renamed in one step, so that running processes keep the former libraries.
mv "$work"/*.so.* "$work/preload" "$final"
