"""Peak extra memory of HiP attention at long context, relative to the size of q + k + v + out. Measured in a
fresh process: its peak resident size after the call, less what it was with the inputs in place.

    python benchmarks/memory.py [--length 131072] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys

CHILD = """
import resource, sys, torch, attn
batch, heads, length, dim = 1, int(sys.argv[1]), int(sys.argv[2]), 64
torch.set_num_threads(int(sys.argv[3]))
small = [torch.randn(1, 1, 1024, dim).bfloat16() for _ in range(3)]
attn.hip_attention(*small, mask_k=64, sliding_window=64)  # threads, scratch and code are in place
q, k, v = (torch.empty(batch, heads, length, dim, dtype=torch.bfloat16) for _ in range(3))
for x in (q, k, v):
    for head in x[0]:
        head.copy_(torch.randn(length, dim))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = attn.hip_attention(q, k, v)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert torch.isfinite(out[..., -1, :].float()).all()
print((after - before) * 1024, 4 * q.numel() * q.element_size())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--length", type=int, default=131072)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    command = [sys.executable, "-c", CHILD, str(args.heads), str(args.length), str(args.threads)]
    extra, inputs = map(
        int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    )
    print(
        f"T={args.length} H={args.heads} D=64 bf16: peak extra memory {extra / 1e6:.0f} MB, output included, "
        f"{extra / inputs:.2f}x of q + k + v + out ({inputs / 1e6:.0f} MB)"
    )
    if args.json:
        args.json.write_text(
            json.dumps({"extra_bytes": extra, "qkvo_bytes": inputs, "ratio": extra / inputs}) + "\n"
        )


if __name__ == "__main__":
    main()
