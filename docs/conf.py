"""How the documentation becomes pages: `scripts/docs` reads it."""

from __future__ import annotations

import re
from typing import Any

from pygments.lexers.special import TextLexer

project = "container"
author = "the authors of container"
project_copyright = "the authors of container, Apache License 2.0"
html_theme = "furo"
html_title = "container"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["reference/contracts"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_use_ivar = True


def to_rst(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Turn the Markdown of our docstrings, fences and backticks, into what autodoc reads."""
    in_fence = False
    found: list[str] = []
    for line in lines:
        if line.strip().startswith("```"):
            in_fence = not in_fence
            found += ["", ".. code-block:: python", ""] if in_fence else [""]
        elif in_fence:
            found.append(f"   {line}")
        else:
            found.append(re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line).replace("**", r"\*\*"))
    lines[:] = found


def setup(app: Any) -> None:
    """Connect what is ours."""
    # Drawings stay text here; a viewer that knows Mermaid shows them.
    app.add_lexer("mermaid", TextLexer)
    # Before napoleon, which reads the sections of what this leaves.
    app.connect("autodoc-process-docstring", to_rst, priority=400)
