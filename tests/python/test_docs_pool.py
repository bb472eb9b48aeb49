"""The examples on the pages of the pool family run."""

import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGES = ("ponet", "segment_pool", "window_pool", "tap_pool", "query_pool", "topk_nodes", "axis_gate")


@pytest.mark.parametrize("page", PAGES)
def test_example(page):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), {})
