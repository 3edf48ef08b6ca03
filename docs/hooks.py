"""What MkDocs does besides: formulas become MathML while the site is built, and no page may load anything from outside.

Formulas are written as GitHub shows them, too: in a ```` ```math ```` block, or between ``$` `` and `` `$``.
"""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

BLOCK = re.compile(r"^```math\n(.+?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"\$`(.+?)`\$")
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")
OUTSIDE = re.compile(
    r"<(?:script|img|iframe|source|video|audio|object|embed)\b[^>]*(?:src|data)=[\"'](?:https?:)?//[^>]*>"
)
STYLES = re.compile(r"<link\b(?![^>]*rel=[\"']?(?:canonical|alternate|prev|next)\b)[^>]*href=[\"'](?:https?:)?//[^>]*>")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Formulas of the page's source to MathML."""
    markdown = BLOCK.sub(
        lambda found: f'<div class="formula">{convert(found[1].strip(), display="block")}</div>', markdown
    )
    # In a span: at the start of a line Markdown would take a formula for a block of its own.
    return INLINE.sub(lambda found: f"<span>{convert(found[1])}</span>", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name other objects by roles, of which the site shows the name only."""
    return ROLE.sub("", html)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """The page, if all it loads is its own.

    Raises:
        PluginError: Naming what comes from outside.
    """
    for pattern in (OUTSIDE, STYLES):
        if found := pattern.search(output):
            raise PluginError(f"{page.file.src_uri} loads something from outside: {found[0]}")
    return output
