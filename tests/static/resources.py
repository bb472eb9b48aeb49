"""resources.py <nvcc> <source root> <kernels.cu>: registers, spills and stack of every CUDA kernel, from
ptxas.

No GPU is needed. For each architecture every kernel must appear, keep its registers within LIMITS, spill
nothing and use no local memory.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ARCHITECTURES = ("sm_80", "sm_90a")
# kernel -> (instances, registers at most). 64 registers let 1024 threads run on an SM: enough for a kernel
# that waits for memory.
LIMITS = {"AttendForward": (6, 255), "MergeStates": (3, 64), "MergeStatesBackward": (3, 64)}

nvcc, root, kernels = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
wrong = []
for architecture in ARCHITECTURES:
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++20", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "--resource-usage"]
        command += [f"-I{root}/include", f"-I{root}/csrc", "-o", f"{folder}/kernels.cubin"]
        done = subprocess.run([*command, kernels], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    report = done.stdout + done.stderr
    entries = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) "
        r"bytes spill loads.*?Used (\d+) registers",
        report,
        re.DOTALL,
    )
    seen = dict.fromkeys(LIMITS, 0)
    for mangled, *numbers in entries:
        stack, stores, loads, registers = map(int, numbers)
        # Itanium mangling: attn::cuda::kernel<attn::cuda::NAME<...>>, NAME after its length.
        match = re.search(r"6kernelINS0_(\d+)(\w+)", mangled)
        name = match.group(2)[: int(match.group(1))] if match else mangled
        if name not in LIMITS:
            wrong.append(f"{architecture} {mangled}: not in the table of tests/static/resources.py")
            continue
        seen[name] += 1
        print(
            f"{architecture:8} {name:24} {registers:4} registers {stack:4} stack {stores + loads:4} spilled"
        )
        if registers > LIMITS[name][1] or stack or stores or loads:
            wrong.append(
                f"{architecture} {name}: {registers} registers (at most {LIMITS[name][1]}), stack {stack}, "
                f"spill stores {stores}, loads {loads}"
            )
    wrong += [
        f"{architecture} {name}: {seen[name]} instances, expected {count}"
        for name, (count, _) in LIMITS.items()
        if seen[name] != count
    ]
if wrong:
    sys.exit("\n".join(wrong))
