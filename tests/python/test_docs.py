"""The documentation holds: every block of code in it is run or checked, links lead somewhere, what is
generated is current.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import torch

import attn
from attn.__main__ import main
from attn.support import matrix

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/simt/README.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
FILE = re.compile(r"(?:benchmarks|cmake|csrc|docs|include|python|scripts|tests|tools)/[\w./*-]+")
LINK = re.compile(r"\[[^\[\]]*\]\(([^)\s]+)\)")


def name_of(page: pathlib.Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(language: str) -> list[pathlib.Path]:
    return [page for page in PAGES if any(m[1] == language for m in FENCE.finditer(page.read_text()))]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_of_a_known_kind(page):
    """python is run, no language means commands, text is output or a formula: nothing goes by unnoticed."""
    text = page.read_text()
    assert {match[1] for match in FENCE.finditer(text)} <= {"python", "", "text"}
    assert len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) == 2 * len(FENCE.findall(text))


@pytest.mark.parametrize("page", blocks("python"), ids=name_of)
def test_examples(page, monkeypatch, tmp_path):
    """The examples of a page run as they stand, one after the other."""
    if "transformers" in page.name:
        pytest.importorskip("transformers", reason="needs transformers (the extra `transformers`)")
    if "viz" in page.name:
        pytest.importorskip("matplotlib", reason="needs matplotlib (the extra `viz`)")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {"__name__": "example"}
    text = page.read_text()
    for block in FENCE.finditer(text):
        if block[1] == "python":
            line = text.count("\n", 0, block.start(2))
            # Empty lines in front: a traceback gives the line of the page.
            exec(compile("\n" * line + block[2], str(page), "exec"), names)


def attn_command(words: list[str]) -> None:
    """`python -m attn ...`: quick ones are run, of others the options are parsed."""
    if words[:1] == ["info"] or (words[:1] == ["bench"] and "--list" in words):
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(words) == 0
    elif words[:2] == ["bench", "accuracy"]:
        from attn.bench.accuracy.command import parser

        parser().parse_args(words[2:])
    elif words[:1] in (["bench"], ["demo"]):
        importlib.import_module(f"attn.{words[0]}.command").parser().parse_args(words[1:])
    else:
        raise AssertionError(f"no such command: {words}")


def script(words: list[str]) -> None:
    """Benchmarks take minutes: the file must exist and know the options."""
    known = (ROOT / words[0]).read_text() + (ROOT / "benchmarks/common.py").read_text()
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in known, option


def gpu_check(words: list[str]) -> None:
    if str(ROOT / "scripts") not in sys.path:
        sys.path.insert(0, str(ROOT / "scripts"))
    importlib.import_module("gpu.main").arguments().parse_args(words)


def make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets)


def pytest_options(words: list[str]) -> None:
    """Markers must be registered; running the suite inside the suite would say no more."""
    registered = re.findall(r"^    (\w+): ", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    if "-m" in words:
        assert words[words.index("-m") + 1] in registered


def not_run(words: list[str]) -> None:
    """Changes the environment (installs, builds) or needs the network."""


# How a command in the documentation starts -> what is done with its further words.
COMMANDS = {
    "python -m attn": attn_command,
    "python scripts/gpu_check": gpu_check,
    "python": script,
    "make": make,
    "pytest": pytest_options,
    "pip install": not_run,
    "pip wheel": not_run,
    "python3 -m venv": not_run,
    "cmake --build": not_run,
}


def check_command(line: str) -> None:
    words = shlex.split(re.sub(r"<[\w-]+>", "X", line).partition(" > ")[0], comments=True)
    if words:
        command = next((c for c in COMMANDS if words[: len(c.split())] == c.split()), None)
        assert command is not None, f"{line!r}: say in COMMANDS how it is checked"
        COMMANDS[command](words[len(command.split()) :])


@pytest.mark.parametrize("page", blocks(""), ids=name_of)
def test_commands(page):
    for block in FENCE.finditer(page.read_text()):
        for line in block[2].splitlines() if not block[1] else ():
            check_command(line)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_in_the_text(page):
    """What the text calls a command or a file of the repository is one."""
    for code in INLINE.findall(FENCE.sub("", page.read_text())):
        code = " ".join(code.split()).removeprefix(".venv/bin/")
        if re.match(r"(python|make) [\w-]", code):
            check_command(code)
        elif FILE.fullmatch(code) and "<" not in code and "..." not in code:
            assert list(ROOT.glob(code)), code


def anchors(page: pathlib.Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), target
        assert ROOT in goal.parents, target
        if anchor:
            assert anchor in anchors(goal), target


def test_every_page_is_in_the_site_and_every_function_has_one():
    site = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r": (\S+\.md)$", site, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(listed)
    api = (ROOT / "docs/api.md").read_text()
    pages = "\n".join(page.read_text() for page in PAGES if page.name not in ("api.md", "support.md"))
    modules = {"nn", "patterns", "reference", "viz"}
    for name in set(attn.__all__) - modules - {"__version__", "Info", "info"}:
        assert f"::: attn.{name}\n" in api, name
        assert re.search(rf"`(attn\.)?{name}\b", pages), name
    for name in [f"attn.nn.{layer}" for layer in attn.nn.__all__]:
        assert name.removeprefix("attn.nn.") in (ROOT / "docs/nn.md").read_text(), name
    for name in attn.patterns.__all__:
        assert name in (ROOT / "docs/patterns.md").read_text(), name


def test_support_matrix_is_current():
    page = (ROOT / "docs/support.md").read_text()
    assert page == matrix(), "run: python -m attn info --matrix > docs/support.md"


SITE_TOOLS = ("mkdocs", "material", "mkdocstrings", "latex2mathml")


@pytest.mark.skipif(
    any(importlib.util.find_spec(tool) is None for tool in SITE_TOOLS),
    reason="needs mkdocs and its plugins: make docs installs them",
)
def test_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "attention.html").is_file()
