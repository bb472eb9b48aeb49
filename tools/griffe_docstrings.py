"""Docstrings as Markdown, for the API pages of the documentation: cross references and formulas are written
there as help() and editors expect them. Formulas become MathML, which browsers show without a script.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`~?([^`]+)`")
INLINE = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^( *)\.\. math::\n((?:\1 +.*\n?|\n)+)", re.MULTILINE)
RETURNS = re.compile(r"^Returns:\n((?: {4}.*\n?|\n)+)", re.MULTILINE)


def _block(match: re.Match[str]) -> str:
    formula = " ".join(textwrap.dedent(match[2]).split())
    return f"{match[1]}\n{match[1]}{convert(formula, display='block')}\n\n"


def markdown(text: str) -> str:
    # Results are described in sentences; a parser would take what stands before a colon for a type.
    text = RETURNS.sub(lambda match: f"**Returns**\n\n{textwrap.dedent(match[1])}", text)
    text = BLOCK.sub(_block, text)
    text = INLINE.sub(lambda match: convert(match[1]), text)
    return ROLE.sub(r"`\1`", text)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
