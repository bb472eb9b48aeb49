"""isa_symbols.py <nm> <isa> <objects...>: no function of code compiled for one instruction set may be shared
with other code.

The linker keeps one copy of an inline function or template instance. Were that the copy compiled for AVX-512,
a CPU without it would crash in code that never asked for it. So every definition that is visible to the
linker must be in the set's own namespace.
"""

import re
import subprocess
import sys

nm, isa, objects = sys.argv[1], sys.argv[2], sys.argv[3:]
table = subprocess.run(
    [nm, "--defined-only", "--extern-only", "-C", *objects], capture_output=True, text=True, check=True
)
own = re.compile(rf"\battn::{isa}::")
# Data that identical definitions may share: no instructions in it.
harmless = re.compile(r"^(typeinfo|typeinfo name|vtable|guard variable) |^DW\.ref\.")
strays = []
for line in table.stdout.splitlines():
    match = re.match(r"[0-9a-f]+ ([A-Za-z]) (.*)", line)
    if match and not own.search(match.group(2)) and not harmless.search(match.group(2)):
        strays.append(f"{match.group(1)} {match.group(2)}")
if strays:
    sys.exit(f"symbols outside attn::{isa} in code compiled for {isa}:\n  " + "\n  ".join(strays))
print(f"{len(objects)} objects: every definition is in attn::{isa}")
