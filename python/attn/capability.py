"""What each backend supports, as data: predicates with reasons.

One table drives the choice of a backend, the text of `BackendError`, `attn.info()` and the support matrix of
the documentation. A predicate returns None where it holds, otherwise the reason, as a sentence that says what
to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import _C
from .errors import BackendError

HOW_TO_BUILD_CUDA = (
    "install from source where nvcc >= 12 is on PATH: pip install . -Ccmake.define.ATTN_CUDA=ON"
)

# Read once: torch.compile can't trace a call into _C.
_BUILD = _C.build_info()

Facts = Mapping[str, Any]
Predicate = Callable[[Facts], "str | None"]


@dataclass(frozen=True)
class Backend:
    """A set of kernels for one kind of device.

    Attributes:
        name: as users see it.
        devices: `torch.device` types it serves.
        dtypes: element types of its floating point arguments.
        ops: functions it has kernels for, each with what further restricts it.
        predicates: restrictions common to all its functions.
    """

    name: str
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    ops: dict[str, tuple[Predicate, ...]]
    predicates: tuple[Predicate, ...] = field(default=())

    def reasons(self, op: str, facts: Facts) -> list[str]:
        """Why this backend cannot serve the call; empty if it can."""
        if op not in self.ops:  # nothing else that is said would help
            return [f"has no kernels for {op}"]
        device, dtype = facts["device"], facts["dtype"]
        missing = _failing(self.predicates, facts)
        why = []
        if device not in self.devices:
            advice = "" if missing else f"; move them with .to('{self.devices[0]}')"
            why.append(f"serves {' and '.join(self.devices)} tensors, got {device}{advice}")
        if dtype not in self.dtypes:
            names = ", ".join(dtype_name(d) for d in self.dtypes)
            why.append(f"supports dtypes {names}, got {dtype_name(dtype)}; convert with .to(...)")
        return why + missing + _failing(self.ops[op], facts)


def _failing(predicates: tuple[Predicate, ...], facts: Facts) -> list[str]:
    found = [predicate(facts) for predicate in predicates]
    return [reason for reason in found if reason is not None]


# Functions with CPU kernels; add a row here with the kernel.
_CPU_OPS: dict[str, tuple[Predicate, ...]] = {
    "agent_attention": (),
    "attention": (),
    "block_sparse_attention": (),
    "decode_attention": (),
    "s2_attention": (),
    "flow_attention": (),
    "flow_attention_step": (),
    "hip_attention": (),
    "hip_select": (),
    "linear_attention": (),
    "merge_states": (),
    "prefix_softmax_pool": (),
    "axis_gate": (),
    "ponet_mix": (),
    "query_pool": (),
    "random_feature_attention": (),
    "segment_pool": (),
    "tap_pool": (),
    "topk_nodes": (),
    "window_pool": (),
}


# The docstring of a predicate is its line in docs/support.md.
def _kernels_built(facts: Facts) -> str | None:
    """Only in builds with CUDA kernels (ATTN_CUDA)."""
    return None if cuda_architectures() else f"this build has no CUDA kernels; {HOW_TO_BUILD_CUDA}"


def _cuda_head_dim(facts: Facts) -> str | None:
    """Head dimensions up to 256, or the largest of ATTN_CUDA_HEAD_DIMS in a build that sets it."""
    return _at_most(cuda_head_dims()[-1], facts)


def _cuda_flow_dim(facts: Facts) -> str | None:
    """Head dimensions up to 256."""
    return _at_most(int(_BUILD["cuda_flow_head_dim"]), facts)


def _at_most(most: int, facts: Facts) -> str | None:
    given = facts.get("head_dim", 0)
    if given <= most:
        return None
    return f"supports head dimensions up to {most}, got {given}; move the tensors to the CPU"


# Functions with CUDA kernels; add a row here with the kernel.
_CUDA_OPS: dict[str, tuple[Predicate, ...]] = {
    "agent_attention": (_cuda_head_dim,),
    "attention": (_cuda_head_dim,),
    "block_sparse_attention": (_cuda_head_dim,),
    "decode_attention": (_cuda_head_dim,),
    "flow_attention": (_cuda_flow_dim,),
    "flow_attention_step": (_cuda_flow_dim,),
    "hip_attention": (_cuda_head_dim,),
    "hip_select": (_cuda_head_dim,),
    "s2_attention": (_cuda_head_dim,),
    "linear_attention": (),
    "merge_states": (),
    "prefix_softmax_pool": (),
    "axis_gate": (),
    "ponet_mix": (),
    "query_pool": (),
    "random_feature_attention": (),
    "topk_nodes": (),
    "segment_pool": (),
    "tap_pool": (),
    "window_pool": (),
}

BACKENDS: tuple[Backend, ...] = (
    Backend(
        name="cpu",
        # Meta tensors have shapes only; the fake implementations serve them.
        devices=("cpu", "meta"),
        dtypes=(torch.float32, torch.bfloat16, torch.float16, torch.float64),
        ops=_CPU_OPS,
    ),
    Backend(
        name="cuda",
        devices=("cuda",),
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        ops=_CUDA_OPS,
        predicates=(_kernels_built,),
    ),
)


def cuda_architectures() -> str:
    """GPU architectures that this build has kernels for; empty without CUDA kernels."""
    return _BUILD["cuda_architectures"]


def cuda_head_dims() -> tuple[int, ...]:
    """Head dimensions that attention has CUDA kernels of its own for, ascending."""
    return tuple(map(int, _BUILD["cuda_head_dims"].split()))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def statistics_dtype(x: Tensor) -> torch.dtype:
    """What lse, sums and states of calls with x are kept in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def require_backend(op: str, tensor: Tensor, **facts: Any) -> Backend:
    """The first backend that serves the call, or BackendError with every backend's reasons.

    Args:
        op: name of the public function.
        tensor: an argument whose device and dtype decide.
        facts: further facts that predicates look at, e.g. head_dim.
    """
    known = {"device": tensor.device.type, "dtype": tensor.dtype, **facts}
    for backend in BACKENDS:
        if not backend.reasons(op, known):
            return backend
    reasons = {backend.name: backend.reasons(op, known) for backend in BACKENDS}
    raise BackendError(op, {**known, "dtype": dtype_name(tensor.dtype)}, reasons)


def support_matrix() -> list[dict[str, str]]:
    """One row per function and backend: op, backend, devices, dtypes."""
    return [
        {
            "op": op,
            "backend": backend.name,
            "devices": ", ".join(backend.devices),
            "dtypes": ", ".join(dtype_name(d) for d in backend.dtypes),
        }
        for backend in BACKENDS
        for op in backend.ops
        if backend.name != "cuda" or cuda_architectures()
    ]
