"""`python -m attn <command>`: each command is `main(arguments) -> exit status` of a module that is imported
only when asked for.
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "bench": (
        "attn.bench",
        "attn and its peers over 14 masks: checked, timed; `bench accuracy`: error over cost",
    ),
    "demo": ("attn.demo", "HiP on a real encoder over a long real text: time, memory, error, a picture"),
    "info": ("attn.info", "versions, CPU instruction set and supported functions, to paste into an issue"),
}


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        return int(importlib.import_module(COMMANDS[arguments[0]][0]).main(arguments[1:]))
    usage = ["usage: python -m attn <command> [options]", "", "commands:"]
    usage += [f"  {name:<8} {text}" for name, (_, text) in COMMANDS.items()]
    asked = not arguments or arguments[0] in ("-h", "--help")
    if not asked:
        usage.insert(0, f"unknown command: {arguments[0]}")
    print("\n".join(usage), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
