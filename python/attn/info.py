"""`attn.info()`: what is installed and what it found on this machine, for people and for bug reports."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass

import numpy
import torch

from . import _C
from ._version import __version__
from .capability import support_matrix
from .support import matrix


@dataclass(frozen=True)
class Info:
    """Facts about the installation; `str()` of it is meant to be pasted into an issue."""

    versions: dict[str, str]
    build: dict[str, str]
    cpu: dict[str, str]
    cuda: dict[str, str]
    support: list[dict[str, str]]

    def __str__(self) -> str:
        lines = []
        for title, facts in (
            ("versions", self.versions),
            ("build", self.build),
            ("cpu", self.cpu),
            ("cuda", self.cuda),
        ):
            lines.append(f"{title}:")
            lines += [f"  {name:<20} {value}" for name, value in facts.items()]
        lines.append("functions:")
        lines += [f"  {row['op']:<28} {row['backend']:<6} {row['dtypes']}" for row in self.support]
        return "\n".join(lines)

    __repr__ = __str__


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cuda() -> dict[str, str]:
    if torch.version.cuda is None:
        return {"torch built for": "no CUDA"}
    facts = {"torch built for": f"CUDA {torch.version.cuda}"}
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            facts[f"device {i}"] = f"{p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB"
    else:
        facts["devices"] = "none available"
    return facts


def info() -> Info:
    """Versions, build, CPU instruction set in use, CUDA devices, and which backend serves which function.

    Raises RuntimeError if the environment variable ATTN_CPU_ISA names an instruction set that is not
    available.
    """
    build = _C.build_info()
    return Info(
        versions={
            "attn": __version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": sys.version.split()[0],
            "platform": platform.platform(),
        },
        build={
            "compiler": build["compiler"],
            "torch headers": build["torch_headers"],
            "torch stable ABI": f">= {build['torch_stable_abi']}",
            "build type": build["build_type"],
            "instruction sets": ", ".join(_C.compiled_isas()),
            "CUDA architectures": build["cuda_architectures"] or "none: built without CUDA kernels",
        },
        cpu={
            "model": _cpu_model(),
            "available": ", ".join(_C.available_isas()),
            "in use": _C.cpu_isa(),
            "ATTN_CPU_ISA": os.environ.get("ATTN_CPU_ISA", "not set"),
            "threads": str(torch.get_num_threads()),
        },
        cuda=_cuda(),
        support=support_matrix(),
    )


def main(arguments: list[str]) -> int:
    """`python -m attn info [--matrix]`"""
    if arguments == ["--matrix"]:
        print(matrix(), end="")
        return 0
    if arguments:
        print(
            "usage: python -m attn info [--matrix]\n\n"
            "  without an option: what is installed, to paste into an issue\n"
            "  --matrix: which functions a backend serves, as the Markdown of docs/support.md",
            file=sys.stdout if arguments in (["-h"], ["--help"]) else sys.stderr,
        )
        return 0 if arguments in (["-h"], ["--help"]) else 2
    try:
        print(info())
    except RuntimeError as error:  # ATTN_CPU_ISA
        print(f"python -m attn info: {error}", file=sys.stderr)
        return 1
    return 0
