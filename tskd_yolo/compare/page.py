"""Pages: one HTML file from a template, which loads nothing and runs nothing. What is put in is text, never markup."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tskd_yolo import __version__
from tskd_yolo.compare import charts
from tskd_yolo.compare.images import EACH_WAY
from tskd_yolo.compare.metrics import DRAWN_AT
from tskd_yolo.compare.stats import Corrected, Effect, interval, points, probability

TEMPLATES = Path(__file__).with_name("templates")
"""What all pages have in common: their frame, their style, and the pages of this package."""


def page(template: str, *, folder: Path = TEMPLATES, **values: Any) -> str:
    """A page.

    Args:
        template: Its name.
        folder: Where the template is; what it extends may be in :data:`TEMPLATES`.
        **values: What the template names.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        points=points,
        gain=lambda e: "–" if e is None else points(_effect(e).mean, sign=True),
        span=lambda e: interval(None if e is None else _effect(e)),
        corrected=lambda e: "–" if e is None else interval(Corrected(**e["corrected"], verdict=e["verdict"])),
        p=lambda e: "–" if e is None else probability(e["corrected"]["p"]),
        css=lambda verdict: verdict if verdict in {"helps", "hurts"} else "open",
        first_word=_names,
        number=charts.number,
        percent=lambda v: "–" if v is None else f"{100 * v:.0f} %".replace("-", "−"),
        decimal=lambda v, digits=0, unit=1: "–" if v is None else f"{v / unit:.{digits}f}",
        signed=lambda n: f"{n:+d}".replace("-", "−"),
    )
    return environment.get_template(template).render(
        version=__version__, each_way=EACH_WAY, drawn_at=DRAWN_AT, **values
    )


def _names(told: Any) -> str:
    """Files by name, without their hashes: one, or several in a list."""
    return ", ".join(str(file).split(" (sha256")[0] for file in (told if isinstance(told, list) else [told]))


def _effect(row: Mapping[str, Any]) -> Effect:
    return Effect(**{k: row[k] for k in ("mean", "low", "high", "seeds")})
