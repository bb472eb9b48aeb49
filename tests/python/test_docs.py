"""The Python examples of README.md and docs/ run as they stand, those of a page one after the other."""

import pathlib
import re

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.exists() and BLOCK.search(page.read_text())],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_examples(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {"__name__": "example"}
    text = page.read_text()
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        # Empty lines in front: a traceback gives the line of the page.
        exec(compile("\n" * line + block.group(1), str(page), "exec"), names)
