"""What the scripts share: interleaved timing (:mod:`attn.bench.timing`), of which medians are reported and
ratios of times taken in the same round, and ceilings of the machine."""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import torch

import attn
from attn.bench.timing import calm, keep_memory

__all__ = ["Bench", "Machine", "arguments", "attention_gflop", "keep_memory"]

HERE = pathlib.Path(__file__).parent


class Machine:
    """Ceilings of this machine, measured when first asked for."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        source = str(HERE / "peak.cpp")
        compiler = os.environ.get("CXX", "g++")
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        # Once loaded, the library needs its file no more.
        with tempfile.TemporaryDirectory(prefix="attn-peak-") as folder:
            library = str(pathlib.Path(folder) / "peak.so")
            subprocess.run([compiler, *flags, source, "-o", library], check=True)
            self._lib = ctypes.CDLL(library)
        for name in ("fma_peak", "bf16_peak"):
            getattr(self._lib, name).restype = ctypes.c_double
            getattr(self._lib, name).argtypes = [ctypes.c_double]
        self._lib.read_pieces.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        self._lib.read_pieces.restype = ctypes.c_float

    def _on_threads(self, call: Callable[[], float]) -> float:
        results = [0.0] * self.threads

        def body(i: int) -> None:
            results[i] = call()

        workers = [threading.Thread(target=body, args=(i,)) for i in range(self.threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(results)

    def fma_gflops(self) -> float:
        """float32 multiply-add peak of all threads together, GFLOP/s."""
        return self._on_threads(lambda: self._lib.fma_peak(0.3))

    def flops(self, dtype: torch.dtype) -> float:
        """Peak for a dtype: of the bf16 dot instruction where the CPU has one, else of float32 arithmetic."""
        if dtype == torch.bfloat16:
            peak = self._on_threads(lambda: self._lib.bf16_peak(0.3))
            if peak > 0:
                return peak
        return self.fma_gflops()

    def read(self, x: torch.Tensor) -> None:
        """Read a contiguous tensor once, on PyTorch's threads: others would have to wait until those stop
        spinning after whatever ran before."""
        x.flatten().view(torch.float32).sum()

    def read_pieces(self, addresses: torch.Tensor, size: int) -> None:
        """Read `size` bytes at every address (int64) once, in order, each thread its share of the list."""
        share = addresses.numel() // self.threads
        offsets = iter(range(self.threads))

        def call() -> float:
            self._lib.read_pieces(addresses.data_ptr() + next(offsets) * share * 8, share, size)
            return 0.0

        self._on_threads(call)

    def read_gbs(self, megabytes: int = 512) -> float:
        """Read bandwidth of all threads together, GB/s, best of five passes over `megabytes`."""
        data = torch.ones(megabytes * 262144)
        best = 0.0
        for _ in range(5):
            start = time.perf_counter()
            self.read(data)
            best = max(best, data.numel() * 4 / (time.perf_counter() - start) * 1e-9)
        return best

    def seconds(self, call: Callable[[], None]) -> float:
        """Median of five runs of a call that has threads of its own, each on a machine at rest."""
        times = []
        for _ in range(5):
            time.sleep(0.05)
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of every candidate (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds a case (default 5)")
    parser.add_argument(
        "--quick", action="store_true", help="few small cases, two rounds: checks that the script works"
    )
    parser.add_argument("--json", type=pathlib.Path, help="write all figures to this file")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    return parser


class Bench:
    """Collects cases; `finish` prints and writes what was measured."""

    def __init__(self, title: str, args: argparse.Namespace) -> None:
        torch.set_num_threads(args.threads)
        self.args, self.title, self.rows = args, title, []
        self.rounds = 2 if args.quick else args.rounds
        self.machine = Machine(args.threads)
        self._peaks: dict[str, float] = {}

    def peak(self, dtype: torch.dtype) -> float:
        return self._peaks.setdefault(str(dtype), self.machine.flops(dtype))

    def wanted(self, name: str) -> bool:
        return self.args.only in name

    def run(
        self,
        name: str,
        candidates: dict[str, Callable[[], object]],
        *,
        ours: str = "attn",
        gflop: float | None = None,
        dtype: torch.dtype | None = None,
        gbytes: float | None = None,
        bars: dict[str, float] | None = None,
    ) -> dict | None:
        """Times `candidates` in turn. `gflop` and `gbytes` are the work of one call; `bars` maps a peer to
        the ratio peer time / our time that is asked for."""
        if not self.wanted(name):
            return None
        for call in candidates.values():
            call()  # warm-up: compilation, caches, page faults
        times = calm(candidates, self.rounds)
        row: dict = {"case": name, "ms": {}, "spread": {}, "ratio": {}, "bar": bars or {}}
        for key, values in times.items():
            row["ms"][key] = statistics.median(values) * 1e3
            row["spread"][key] = (max(values) - min(values)) / statistics.median(values)
        mine = times[ours]
        for key, values in times.items():
            if key != ours:
                row["ratio"][key] = statistics.median(v / m for v, m in zip(values, mine, strict=True))
        seconds = row["ms"][ours] * 1e-3
        if gflop is not None:
            row["gflops"] = gflop / seconds
            if dtype is not None:
                row["share_of_peak"] = row["gflops"] / self.peak(dtype)
        if gbytes is not None:
            self._peaks.setdefault("read", self.machine.read_gbs())
            row["gbs"] = gbytes / seconds
            row["share_of_read_bandwidth"] = row["gbs"] / self._peaks["read"]
        self.rows.append(row)
        _print_row(row)
        self._write()
        return row

    def _write(self) -> None:
        """What was measured so far, so that an interrupted run leaves its figures behind."""
        if not self.args.json:
            return
        record = {
            "title": self.title,
            "command": " ".join(["python", *sys.argv]),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "threads": self.args.threads,
            "cpu": attn.info().cpu["model"],
            "torch": torch.__version__,
            "attn": attn.__version__,
            "isa": attn._C.cpu_isa(),
            "peaks": self._peaks,
            "rows": self.rows,
        }
        self.args.json.parent.mkdir(parents=True, exist_ok=True)
        self.args.json.write_text(json.dumps(record, indent=1) + "\n")

    def finish(self) -> None:
        print("peaks:", ", ".join(f"{k} {v:.1f}" for k, v in self._peaks.items()) or "none asked for")
        missed = [
            (r["case"], peer, bar, r["ratio"][peer])
            for r in self.rows
            for peer, bar in r["bar"].items()
            if peer in r["ratio"] and r["ratio"][peer] < bar
        ]
        for case, peer, bar, ratio in missed:
            print(f"below the bar: {case}: {ratio:.2f}x {peer}, asked for {bar:g}x")
        if self.args.json:
            self._write()
            print("wrote", self.args.json)


def _print_row(row: dict) -> None:
    parts = [f"{key} {ms:.3f} ms (±{row['spread'][key] * 50:.0f} %)" for key, ms in row["ms"].items()]
    parts += [f"{ratio:.2f}x {key}" for key, ratio in row["ratio"].items()]
    if "gflops" in row:
        share = f" = {row['share_of_peak'] * 100:.0f} % of peak" if "share_of_peak" in row else ""
        parts.append(f"{row['gflops']:.1f} GFLOP/s{share}")
    if "gbs" in row:
        parts.append(
            f"{row['gbs']:.1f} GB/s = {row['share_of_read_bandwidth'] * 100:.0f} % of read bandwidth"
        )
    print(f"{row['case']}: " + ", ".join(parts), flush=True)


def attention_gflop(
    q_len: int, k_len: int, heads: int, dim: int, *, causal: bool = False, backward: bool = False
) -> float:
    """4 Tq Tk D H, half if causal; forward plus backward counts 3.5 times the forward."""
    return 4 * q_len * k_len * dim * heads * (0.5 if causal else 1.0) * (3.5 if backward else 1.0) * 1e-9
