#!/usr/bin/env bash
# smoke_sdist.sh [torch version, default 2.13.0]
# Makes the source distribution, builds and installs it in an environment that has only torch and numpy (pip fetches the build tools, as
# for any user), away from the checkout, and runs tests/python/smoke.py there. ATTN_CPU_ISAS=avx2 builds fewer kernels. PYTHON (default
# python3) needs scikit-build-core.
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:-2.13.0}
python=${PYTHON:-python3}
venv=$PWD/build/sdist-$version
rm -rf build/sdist

$python -c "import sys; sys.path.insert(0, 'tools'); import attn_build; attn_build.build_sdist('build/sdist')"
[ -x "$venv/bin/python" ] || $python -m venv "$venv"
"$venv/bin/python" -m pip install -q "torch==$version" numpy
"$venv/bin/python" -m pip install -q --force-reinstall --no-deps ${ATTN_CPU_ISAS:+-Ccmake.define.ATTN_CPU_ISAS=$ATTN_CPU_ISAS} build/sdist/attn-*.tar.gz
cp tests/python/smoke.py "$venv"
cd "$venv" && bin/python smoke.py
