"""suites.py DEVICE_TESTS [--filter F] [--jobs N]: runs each suite in a process of its own.

A kernel that reads where it must not leaves its process without a GPU: the tests after it would fail for
nothing.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

NO_GPU = 77  # what device_tests returns then


def suites(tests: str, chosen: str) -> dict[str, list[str]]:
    """Tests of each suite. --gtest_list_tests: "Suite/0.  # TypeParam = ...", then one a line, indented."""
    command = [tests, "--gtest_list_tests", f"--gtest_filter={chosen}"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for line in listed.splitlines():
        name = line.split("#")[0].strip()
        if line.startswith("  ") and found:
            found[list(found)[-1]].append(name)
        elif re.fullmatch(r"\S+\.", name):
            found[name] = []
    return found


def run(tests: str, suite: str, names: list[str]) -> tuple[str, int, str]:
    command = [tests, "--gtest_brief=1", "--gtest_filter=" + ":".join(suite + name for name in names)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return suite.rstrip("."), done.returncode, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("tests")
    parser.add_argument("--filter", default="*")
    parser.add_argument("--jobs", type=int, default=4)
    options = parser.parse_args()
    found = suites(options.tests, options.filter)
    failed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for suite, code, text in pool.map(lambda item: run(options.tests, *item), found.items()):
            print(f"== {suite}: {'ok' if code == 0 else f'exit status {code}'}\n{text}", flush=True)
            if code == NO_GPU:
                return code
            if code:
                failed.append(suite)
    total = sum(map(len, found.values()))
    print(
        f"{total} tests in {len(found)} suites, "
        + (f"failed: {', '.join(failed)}" if failed else "all passed")
    )
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(main())
