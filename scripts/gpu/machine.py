"""What the machine is and has."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def output(*command: str, seconds: float = 60) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def torch_facts(python: str) -> dict[str, str]:
    code = (
        "import torch; c = torch.cuda; ok = c.is_available(); "
        "print(torch.__version__, torch.version.cuda, ok, "
        "'%d%d' % c.get_device_capability() if ok else '', c.get_device_name() if ok else '', sep='|')"
    )
    # The first import on a machine reads gigabytes.
    fields = output(python, "-c", code, seconds=150).splitlines()[-1:] or ["did not load||False||"]
    version, cuda, available, capability, name = fields[0].split("|")
    return {
        "torch": version,
        "torch CUDA": cuda,
        "GPU": name if available == "True" else "",
        "capability": capability,
    }


def commit() -> str:
    found = output("git", "rev-parse", "--short", "HEAD")
    changed = " with changes" if found and output("git", "status", "--porcelain", "-uno") else ""
    return (found or "unknown") + changed


def find_nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def facts() -> dict[str, str]:
    nvcc = find_nvcc()
    release = output(nvcc, "--version").splitlines()[-2:-1] if nvcc else []
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "python": sys.version.split()[0],
        "cores": str(len(os.sched_getaffinity(0))),
        "nvcc": release[0] if release else "",
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
        **torch_facts(sys.executable),
    }
