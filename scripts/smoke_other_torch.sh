#!/usr/bin/env bash
# smoke_other_torch.sh [torch version, default 2.10.0]
# Builds the wheel with the torch of the current environment (or .venv) and runs it under another torch, the oldest supported one by
# default: the proof that one build serves all of them. That torch is the default one of PyPI, gigabytes with its CUDA packages; it goes
# into build/smoke-<version>, which is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:-2.10.0}
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python
venv=build/smoke-$version

$python -m pip wheel -q . --no-deps --no-build-isolation -w "$venv.wheel"
[ -x "$venv/bin/python" ] || $python -m venv "$venv"
"$venv/bin/python" -m pip install -q "torch==$version" numpy
"$venv/bin/python" -m pip install -q --force-reinstall --no-deps "$venv".wheel/attn-*.whl
"$venv/bin/python" tests/python/smoke.py
