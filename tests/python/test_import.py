"""What `import attn` may cost and touch, each in a fresh interpreter."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch

import attn

# Seconds of CPU time beyond `import torch`; other work on the machine changes the time on the clock.
BUDGET = 0.3


def fresh(code: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300)


def test_import_time():
    code = "import time, torch; t = time.process_time(); import attn; print(time.process_time() - t)"
    # The best of a few: cold caches and other work only ever add.
    seconds = min(float(fresh(code).stdout) for _ in range(3))
    assert seconds < BUDGET, f"import attn took {seconds:.2f} s beyond torch"


def test_import_touches_nothing():
    code = """
import json, socket, subprocess, sys, threading, torch
def refuse(*arguments, **options):
    raise AssertionError(f"import attn called {arguments}")
socket.socket.connect = socket.getaddrinfo = subprocess.Popen.__init__ = refuse
before, threads = set(sys.modules), threading.active_count()
import attn
added = {name.split(".")[0] for name in set(sys.modules) - before}
print(json.dumps({
    "cuda": torch.cuda.is_initialized(),
    "threads": threading.active_count() - threads,
    "optional": sorted(added & {"transformers", "matplotlib", "scipy", "pandas", "triton"}),
}))
"""
    result = fresh(code)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"cuda": False, "threads": 0, "optional": []}


def test_info_is_complete():
    result = subprocess.run(
        [sys.executable, "-m", "attn", "info"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    for fact in (attn.__version__, torch.__version__, attn._C.cpu_isa(), "merge_states", "instruction sets"):
        assert fact in result.stdout
    assert str(attn.info()).splitlines()[0] == "versions:"


def test_unknown_command_lists_the_commands():
    result = subprocess.run(
        [sys.executable, "-m", "attn", "nosuch"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 2
    assert "unknown command: nosuch" in result.stderr
    assert "info" in result.stderr


@pytest.mark.parametrize("isa", attn._C.available_isas())
def test_instruction_set_by_environment(isa):
    code = "import attn, torch; attn.merge_states(torch.ones(2, 3), torch.ones(2)); print(attn._C.cpu_isa())"
    result = fresh(code, ATTN_CPU_ISA=isa)
    assert result.stdout.strip() == isa, result.stderr


def test_instruction_set_that_does_not_exist():
    code = "import attn, torch; attn.merge_states(torch.ones(2, 3), torch.ones(2))"
    result = fresh(code, ATTN_CPU_ISA="mmx")
    assert result.returncode != 0
    assert "ATTN_CPU_ISA=mmx: no such instruction set; available: " in result.stderr


def test_backend_error_lists_reasons_and_survives_pickling():
    with pytest.raises(attn.BackendError) as caught:
        attn.merge_states(torch.ones(2, 3, dtype=torch.int32), torch.ones(2))
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == str(caught.value)
    assert error.op == "merge_states"
    assert error.given["dtype"] == "int32"
    assert list(error.reasons) == [backend.name for backend in attn.capability.BACKENDS]


def test_backend_error_gives_only_advice_that_helps():
    cuda = next(backend for backend in attn.capability.BACKENDS if backend.name == "cuda")
    facts = {"device": "cuda", "dtype": torch.float64, "head_dim": 64}
    # Every function has CUDA kernels; one that had none would be told this alone.
    assert cuda.reasons("a_new_mixer", facts) == ["has no kernels for a_new_mixer"]
    reasons = cuda.reasons("attention", {**facts, "device": "cpu"})
    assert any("float64" in reason for reason in reasons)
    if not attn.capability.cuda_architectures():
        assert not any(".to('cuda')" in reason for reason in reasons)
        assert "ATTN_CUDA=ON" in reasons[-1]
