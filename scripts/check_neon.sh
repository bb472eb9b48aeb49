#!/usr/bin/env bash
# check_neon.sh [gtest filter, default all]
# Compiles the CPU kernels for Arm (NEON) with a cross compiler and runs the C++ tests under emulation, 3 to 8 minutes: the
# source is portable and right there, which says nothing about its speed. Where the tools are missing it says so and does
# nothing; on Debian: apt-get install g++-aarch64-linux-gnu qemu-user
set -euo pipefail
cd "$(dirname "$0")/.."
compiler=${CXX_AARCH64:-aarch64-linux-gnu-g++}
emulator=${QEMU_AARCH64:-qemu-aarch64}
root=${SYSROOT_AARCH64:-/usr/aarch64-linux-gnu}
for tool in "$compiler" "$emulator" cmake ninja; do
  command -v "$tool" >/dev/null || { echo "check_neon: skipped, $tool is not installed"; exit 0; }
done
[ -d "$root" ] || { echo "check_neon: skipped, no Arm libraries in $root (SYSROOT_AARCH64)"; exit 0; }

build=build/neon
cmake -S . -B "$build" -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  "-DCMAKE_CXX_COMPILER=$compiler" -DATTN_PYTHON=OFF -DATTN_TESTS=ON -DATTN_WERROR=ON
cmake --build "$build" -j "${JOBS:-2}" --target host_tests kernel_tests
for tests in host_tests kernel_tests; do
  ATTN_CPU_ISA=neon "$emulator" -L "$root" "$build/tests/cpp/$tests" --gtest_brief=1 "--gtest_filter=${1:-*}"
done
