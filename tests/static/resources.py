"""resources.py <nvcc> <source root> <kernels.cu> [options]: what the device compiler made of kernels.

No GPU is needed. For each architecture every kernel must appear with its instances, keep its registers within
LIMITS, spill nothing, use no local memory and fit the shared memory of a block. With nvdisasm (pip install
nvidia-cuda-nvdisasm) its instructions are counted too: tensor core products must be there where they should
be, and loads and stores of local memory nowhere. Prints one table.
"""

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

# Shared memory of a block, KiB, with the opt-in that launches ask for.
ARCHITECTURES = {"sm_80": 163, "sm_90a": 227}
# Where a kernel doesn't fit, the launch refuses (csrc/cuda/launch.cu); the table says so.
SMALLER = {"sm_86": 99, "sm_89": 99, "sm_120": 99}
REGISTERS = 65536  # of an SM


@dataclass(frozen=True)
class Limit:
    """What a kernel may use and must contain.

    64 registers let 1024 threads run on an SM: enough for a kernel that waits for memory.
    """

    instances: int
    registers: int
    needs: tuple[str, ...] = ()  # instructions, by name of COUNTED


ATTEND = Limit(9, 255, ("HMMA", "LDSM", "LDGSTS"))
LIMITS = {
    "AttendForward": ATTEND,
    "Decode": ATTEND,
    "HipSelect": Limit(18, 255),  # those of float32 use no tensor cores
    "LayoutBuild": Limit(1, 64),
    "LayoutTranspose": Limit(1, 64),
    "MergeSplits": Limit(3, 64),
    "QueryGradients": ATTEND,
    "KeyGradients": ATTEND,
    "AttendDelta": Limit(3, 64),
    "SinkGradients": Limit(1, 64),
    "MergeStates": Limit(3, 64),
    "MergeStatesBackward": Limit(3, 64),
    "TilesTranspose": Limit(1, 64),
    "AscendingIds": Limit(1, 64),
    "SegmentOffsets": Limit(1, 64),
    "PonetSums": Limit(3, 96),
    "PonetQuery": Limit(1, 64),
    "PonetMaxima": Limit(1, 64),
    "PonetKeys": Limit(3, 64),
    "PonetGlobal": Limit(1, 64),
    "PonetMix": Limit(3, 128),  # 128 threads with eight rows in flight each: four blocks on an SM
    "PonetParts": Limit(3, 64),
    "PonetWinners": Limit(1, 64),
    "PonetTokenGradients": Limit(3, 128),
    "PonetTotals": Limit(1, 64),
    "PonetSequenceSums": Limit(2, 64),
    "PonetKeyGradients": Limit(3, 96),
    "PonetGivenRows": Limit(3, 64),
    "PonetLocalGradient": Limit(3, 128),
    "SegmentReduce": Limit(3, 64),
    "SegmentJoin": Limit(3, 64),
    "SegmentPartSums": Limit(3, 64),
    "SegmentMaxShares": Limit(3, 80),
    "SegmentKept": Limit(1, 64),
    "SegmentGradient": Limit(3, 80),
    "TapForward": Limit(3, 96),
    "TapGradient": Limit(3, 96),
    "TapWeightGradient": Limit(3, 96),
    "WindowPool": Limit(3, 96),
    "WindowGradient": Limit(3, 80),
    "LinearDelta": Limit(3, 64),
    "PrefixGradients": Limit(3, 96),
    "PrefixRows": Limit(3, 96),
    "PrefixScan": Limit(1, 64),
    "PrefixSums": Limit(6, 96),
    "ScanProduct": Limit(6, 240, ("HMMA",)),
    "SegmentSums": Limit(6, 144, ("HMMA",)),
    "AxisGateForward": Limit(3, 64),
    "AxisGateBackward": Limit(3, 80),
    "AxisGateSums": Limit(3, 64),
    "QueryPool": Limit(15, 255),  # those of float32 use no tensor cores
    "QueryPoolSums": Limit(3, 80),
    "QueryPoolCounts": Limit(1, 64),
    "TopkCounts": Limit(3, 64),
    "TopkBounds": Limit(1, 64),
    "TopkFill": Limit(1, 64),
    "TopkSort": Limit(3, 64),
    "TopkMerge": Limit(1, 64),
    "TopkWrite": Limit(1, 64),
    "TopkAbove": Limit(3, 64),
    "ChunkScan": Limit(1, 64),
    "FlowKept": Limit(1, 64),
    "FlowSums": Limit(3, 128),  # 256 threads that hold rows in registers: two blocks on an SM
    "FlowDots": Limit(6, 128),
    "FlowWeights": Limit(1, 64),
    "ItemScan": Limit(3, 64),
    "FlowHeadWeights": Limit(1, 64),
    "FlowChunkProduct": Limit(3, 168),
    "FlowOut": Limit(3, 255),
    "FlowGradSums": Limit(9, 128),
    "FlowGradWeights": Limit(1, 64),
    "FlowGradChunkProduct": Limit(3, 168),
    "FlowGradValues": Limit(3, 255),
    "FlowGradRows": Limit(6, 255),
    "FlowCausalSums": Limit(3, 128),
    "FlowGammaLines": Limit(1, 64),
    "FlowCausalWeights": Limit(3, 128),
    "FlowCausalFlows": Limit(3, 128),
    "FlowCausalGradRows": Limit(6, 255),
    "SumGroups": Limit(3, 64),
    "FlowStep": Limit(3, 80),
}
# Kernels that are compiled for sm_90a alone, with CUTLASS. They move registers from a producer to
# consumers: the number is what a block starts with. HMMA: their careful way (sm90/attend_forward.h).
ATTEND_GROUPS = Limit(4, 168, ("HGMMA", "UTMALDG", "USETMAXREG", "HMMA"))
SM90A_LIMITS = {
    "AttendGroups": ATTEND_GROUPS,
    "KeyGroups": ATTEND_GROUPS,
    "QueryGroups": ATTEND_GROUPS,
}
# Tensor core products (warp, warpgroup), ldmatrix, cp.async, TMA loads, registers moved, local memory.
COUNTED = ("HMMA", "HGMMA", "LDSM", "LDGSTS", "UTMALDG", "USETMAXREG", "LDL", "STL")


@dataclass
class Kernel:
    architecture: str
    mangled: str
    stack: int
    spilled: int
    registers: int
    name: str = ""
    label: str = ""
    threads: int = 0
    shared: int = 0
    instructions: Counter = field(default_factory=Counter)

    def wrong(self, limit: Limit, disassembled: bool) -> list[str]:
        found = []
        if self.registers > limit.registers:
            found.append(f"{self.registers} registers, at most {limit.registers}")
        if self.registers * self.threads > REGISTERS:
            found.append(f"{self.registers} registers x {self.threads} threads don't fit an SM")
        if self.stack or self.spilled:
            found.append(f"local memory: {self.stack} bytes of stack, {self.spilled} spilled")
        most = ARCHITECTURES[self.architecture]
        if self.shared > most * 1024:
            found.append(f"{self.shared} bytes of shared memory, a block has {most} KiB")
        if disassembled:
            found += [f"no {kind}" for kind in limit.needs if not self.instructions[kind]]
            found += [
                f"{self.instructions[kind]} {kind}" for kind in ("LDL", "STL") if self.instructions[kind]
            ]
        return [f"{self.architecture} {self.label}: {text}" for text in found]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout + done.stderr


def find_nvdisasm() -> str | None:
    """On PATH or where a wheel of nvidia-cuda-nvdisasm puts it."""
    for place in Path(sysconfig.get_path("purelib"), "nvidia").glob("*/bin/nvdisasm"):
        return str(place)
    return shutil.which("nvdisasm")


def entries(architecture: str, report: str) -> list[Kernel]:
    """Kernels in the report of ptxas -v."""
    found = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) "
        r"bytes spill loads.*?Used (\d+) registers",
        report,
        re.DOTALL,
    )
    return [Kernel(architecture, m, int(s), int(a) + int(b), int(r)) for m, s, a, b, r in found]


def describe(kernels: list[Kernel]) -> None:
    """Name, threads and shared memory, all of which the signature of cuda/kernel.h's kernel holds."""
    texts = run("c++filt", *[k.mangled for k in kernels]).splitlines()
    for kernel, text in zip(kernels, texts, strict=True):
        match = re.search(r"kernel<(?:attn::cuda::)?((\w+).*), (\d+)u?l?, (\d+)u?l?>\(", text)
        if match is None:
            sys.exit(f"not a kernel of cuda/kernel.h: {text}")
        label, kernel.name, threads, shared = match.groups()
        kernel.label = re.sub(r"attn::(seam|cuda)::|\((attn::)?DType\)", "", label)
        kernel.threads, kernel.shared = int(threads), int(shared)


def count_instructions(nvdisasm: str, cubin: str, kernels: list[Kernel]) -> None:
    by_name = {kernel.mangled: kernel for kernel in kernels}
    current: Kernel | None = None
    for line in run(nvdisasm, "-c", cubin).splitlines():
        section = re.match(r"\s*\.section\s+\.text\.(\w+)", line)
        if section:
            current = by_name.get(section.group(1))
            continue
        # /*0010*/  @!P0 HMMA.16816.F32 R4, ...
        found = re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z0-9]+)", line)
        if found and current is not None and found.group(1) in COUNTED:
            current.instructions[found.group(1)] += 1


def compile_all(
    nvcc: str, root: str, source: str, nvdisasm: str | None, architectures: tuple[str, ...], *flags: str
) -> list[Kernel]:
    kernels = []
    for architecture in architectures:
        with tempfile.TemporaryDirectory() as folder:
            cubin = f"{folder}/kernels.cubin"
            command = [nvcc, "-std=c++20", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-o", cubin]
            report = run(*command, f"-I{root}/include", f"-I{root}/csrc", *flags, source)
            if "serialized" in report:  # ptxas: wgmma waits for itself, as registers are touched in between
                sys.exit(report)
            found = entries(architecture, report)
            describe(found)
            if nvdisasm:
                count_instructions(nvdisasm, cubin, found)
        kernels += found
    return kernels


def table(kernels: list[Kernel], disassembled: bool) -> str:
    """One row a kernel and architecture; zeros are left out to be seen past."""
    head = ["kernel", "for", "threads", "registers", "shared KiB", "stack", "spilled", "does not fit"]
    head += COUNTED if disassembled else ()
    rows = [head]
    for k in sorted(kernels, key=lambda k: (k.label, k.architecture)):
        small = " ".join(name for name, most in SMALLER.items() if k.shared > most * 1024)
        numbers = [k.threads, k.registers, f"{k.shared / 1024:.1f}", k.stack, k.spilled]
        counts = [k.instructions[kind] or "" for kind in COUNTED] if disassembled else []
        rows.append([k.label, k.architecture, *map(str, numbers), small, *map(str, counts)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nvcc")
    parser.add_argument("root")
    parser.add_argument("source")
    parser.add_argument("--sm90a", nargs=2, help="source of its own kernels, directory of CUTLASS")
    parser.add_argument("--table", help="write the table to this file too")
    options = parser.parse_args()
    nvdisasm = find_nvdisasm()
    common = (options.nvcc, options.root)
    kernels = compile_all(*common, options.source, nvdisasm, tuple(ARCHITECTURES))
    limits = {(architecture, name): limit for architecture in ARCHITECTURES for name, limit in LIMITS.items()}
    if options.sm90a:
        source, include = options.sm90a
        kernels += compile_all(*common, source, nvdisasm, ("sm_90a",), "-isystem", include)
        limits |= {("sm_90a", name): limit for name, limit in SM90A_LIMITS.items()}
    text = table(kernels, nvdisasm is not None)
    print(text)
    if nvdisasm is None:
        print("instructions were not counted: pip install nvidia-cuda-nvdisasm")
    if options.table:
        Path(options.table).write_text(text + "\n")
    wrong = []
    for k in kernels:
        if (k.architecture, k.name) in limits:
            wrong += k.wrong(limits[k.architecture, k.name], nvdisasm is not None)
        else:
            wrong.append(f"{k.architecture} {k.label}: not in LIMITS of tests/static/resources.py")
    seen = Counter((k.architecture, k.name) for k in kernels)
    wrong += [
        f"{architecture} {name}: {seen[architecture, name]} instances, expected {limit.instances}"
        for (architecture, name), limit in limits.items()
        if seen[architecture, name] != limit.instances
    ]
    if wrong:
        sys.exit("\n".join(wrong))


main()
