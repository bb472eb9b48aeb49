"""What the documentation site adds to docs/: the repository's own pages, and links that work in both.

Pages link to each other as files of the repository, so that they can be read there. On the site a link to a
file that has a page becomes a link to the page, and one to a source file becomes its name.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# Repository path -> path on the site, for what lies outside docs/.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "tests/simt/README.md": "simt.md",
}
FENCE = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def _outside() -> dict[str, str]:
    results = [*ROOT.glob("benchmarks/results/**/*.md"), *ROOT.glob("benchmarks/results/**/*.png")]
    found = {path.relative_to(ROOT).as_posix(): path.relative_to(ROOT).as_posix() for path in results}
    return {**OUTSIDE, **found}


def on_files(files: Files, config: Any) -> Files:
    for source, target in _outside().items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    site = _outside()
    repository = {target: source for source, target in site.items()}
    here = page.file.src_uri
    source = repository.get(here, f"docs/{here}")

    def rewritten(link: re.Match[str]) -> str:
        image, text, target, anchor = link.groups()
        if re.match(r"[a-z]+:", target):
            return link.group()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        goal = site.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(goal) is not None:
            return f"{image}[{text}]({posixpath.relpath(goal, posixpath.dirname(here) or '.')}{anchor or ''})"
        # What doesn't exist stays as it is, and the strict build stops at it.
        return text if (ROOT / path).exists() else link.group()

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(rewritten, part) for part in parts[::2]]
    return "".join(parts)
