"""A library that holds CUDA kernels, where there is no GPU and maybe no torch with CUDA: `make test-cuda`."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

import attn
from attn import capability
from on_paper import call_on_paper

LIBRARY = Path(attn.__file__).parent / "libattn_ops.so"

pytestmark = pytest.mark.skipif(
    not capability.cuda_architectures(), reason="a build without CUDA kernels; make test-cuda makes one"
)


def zeros(dim=64, dtype=torch.bfloat16):
    return torch.zeros(1, 2, 64, dim, dtype=dtype)


def test_the_cpu_is_served():
    q, k, v = (torch.randn(1, 2, 70, 64) for _ in range(3))
    out = attn.attention(q, k, v, causal=True)
    expected = attn.reference.attention(q, k, v, causal=True).float()
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert not torch.cuda.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_call_without_a_gpu_is_an_error():
    """Its checks have passed; there is no memory to be had."""
    q = zeros()
    with pytest.raises((RuntimeError, NotImplementedError)) as caught:
        call_on_paper(torch.ops.attn.attend_forward, q, q, q)
    assert "no CUDA kernels" not in str(caught.value)
    assert attn.attention(q, q, q).isfinite().all()


@pytest.mark.parametrize(
    ("q", "text"),
    [
        (zeros(capability.cuda_head_dims()[-1] + 1), "head dimensions of q, k and v must be at most"),
        (zeros(dtype=torch.float64), "supports float32, bfloat16 and float16, got float64"),
    ],
)
def test_what_kernels_do_not_serve(q, text):
    with pytest.raises(RuntimeError, match=f"attn::attend_forward: attention forward on CUDA: .*{text}"):
        call_on_paper(torch.ops.attn.attend_forward, q, q, q)


@pytest.mark.parametrize(
    ("op", "most"),
    [
        (torch.ops.attn.attend_forward, capability.cuda_head_dims()[-1]),
        (torch.ops.attn.flow_forward, int(capability._BUILD["cuda_flow_head_dim"])),
    ],
)
def test_head_dimensions_are_those_of_the_kernels(op, most):
    """What is said in Python is what C++ finds."""
    for dim in (most, most + 1):
        q = zeros(dim)
        with pytest.raises((RuntimeError, NotImplementedError)) as caught:
            call_on_paper(op, q, q, q)
        assert ("must be at most" in str(caught.value)) == (dim > most)


def cuobjdump() -> str:
    for wheel in Path(sysconfig.get_path("purelib"), "nvidia").glob("*/bin/cuobjdump"):
        return str(wheel)
    tool = shutil.which("cuobjdump") or shutil.which("/usr/local/cuda/bin/cuobjdump")
    return tool or pytest.skip("needs cuobjdump (the extra `static`, or the CUDA toolkit)")


def test_machine_code_for_each_architecture():
    tool = cuobjdump()
    done = subprocess.run([tool, "--list-elf", str(LIBRARY)], capture_output=True, text=True, check=True)
    found = set(re.findall(r"sm_(\d+a?)", done.stdout))
    assert found == {name.split("-")[0] for name in capability.cuda_architectures().split()}


def test_nothing_of_cuda_is_linked():
    """No runtime to be found, no driver to be there: what is missing is said when a call needs it."""
    names = subprocess.run(
        ["nm", "-D", "--undefined-only", str(LIBRARY)], capture_output=True, text=True, check=True
    ).stdout
    assert re.findall(r"\b(?:cuda|cu)[A-Z]\w+", names) == []
    assert re.findall(r"\bw aoti_torch_get_current_cuda_stream", names)
