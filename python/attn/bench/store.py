"""Finished cases, one JSON line each, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class OtherRun(Exception):
    """The folder holds results of a run with other settings."""


class Store:
    """``DIR/cases.jsonl``: first what identifies the run, then a line for every finished case. A line that
    was cut off while it was written is dropped, and its case measured again."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.path = folder / "cases.jsonl"
        self.cases: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        found = self.path.read_bytes() if self.path.exists() else b""
        end = found.rfind(b"\n") + 1  # what is behind was cut off
        whole = [json.loads(line) for line in found[:end].splitlines()]
        if whole and whole[0] != identity:
            names = [n for n in identity if whole[0].get(n) != identity[n]]
            told = ", ".join(f"{n} {whole[0].get(n)!r}, now {identity[n]!r}" for n in names)
            raise OtherRun(
                f"{self.path} holds another run ({told}); choose another --out, or remove that file"
            )
        self.cases = {record["case"]: record for record in whole[1:]}
        self.resumed = len(self.cases)
        with self.path.open("ab") as file:  # finished lines are never written again: a kill here loses none
            file.truncate(end)
            if not whole:
                file.write(json.dumps(identity).encode() + b"\n")

    def add(self, record: dict[str, Any]) -> None:
        self.cases[record["case"]] = record
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
