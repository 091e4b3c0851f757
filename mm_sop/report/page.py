"""The items of a page, and one self-contained HTML page made of them."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

from jinja2 import Environment
from matplotlib.figure import Figure

from mm_sop.report.style import DARK, LIGHT, render
from mm_sop.utils.templates import template_environment


@dataclass(frozen=True)
class Chart:
    """A chart in both themes.

    Attributes:
        name: Name of its files, without extension.
        light: PNG for a light background, twice as fine as it is shown.
        dark: PNG for a dark background.
        text: Alternative text: what the chart shows.
    """

    kind: ClassVar[str] = 'chart'

    name: str
    light: bytes
    dark: bytes
    text: str

    @classmethod
    def drawn(cls, name: str, draw: Callable[..., Figure], text: str) -> 'Chart':
        """Draw a chart in both themes; ``draw`` makes the figure for a ``theme``."""
        return cls(name, render(draw, LIGHT), render(draw, DARK), text)

    @property
    def files(self) -> dict[str, bytes]:
        """Content by file name."""
        return {f'{self.name}.png': self.light, f'{self.name}_dark.png': self.dark}


@dataclass(frozen=True)
class Photo:
    """A montage of images for any background; on small screens it scrolls sideways.

    Attributes:
        name: Name of its file, without extension.
        image: PNG, twice as fine as it is shown.
        text: Alternative text: what the images show.
    """

    kind: ClassVar[str] = 'photo'

    name: str
    image: bytes
    text: str

    @property
    def files(self) -> dict[str, bytes]:
        """Content by file name."""
        return {f'{self.name}.png': self.image}


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading row; if long cells may wrap, all are aligned to the left."""

    kind: ClassVar[str] = 'table'
    files: ClassVar[Mapping[str, bytes]] = {}

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    wrap: bool = False


@dataclass(frozen=True)
class Details:
    """A long table or long preformatted text that is folded away under a visible title."""

    kind: ClassVar[str] = 'details'
    files: ClassVar[Mapping[str, bytes]] = {}

    title: str
    content: str | Table


Item = Chart | Photo | Table | Details


@dataclass(frozen=True)
class Section:
    """Part of a page: a heading (empty for the first part), an explanation and items."""

    title: str
    text: str
    items: Sequence[Item] = field(default_factory=tuple)


def render_page(title: str, answer: str, opening: str, summary: str, sections: Sequence[Section]) -> str:
    """Render a page as HTML that loads nothing.

    The ``opening`` is emphasized, and colored if the ``answer`` is ``'yes'`` or ``'no'``; the ``summary`` follows it.
    """
    template = _templates().get_template('page.html')
    return template.render(title=title, answer=answer, opening=opening, summary=summary, sections=sections)


@cache
def _templates() -> Environment:
    environment = template_environment('mm_sop.report')
    environment.filters['data_uri'] = lambda png: f'data:image/png;base64,{base64.b64encode(png).decode()}'
    # Half of the width that a PNG states in its header.
    environment.filters['shown_width'] = lambda png: int.from_bytes(png[16:20], 'big') // 2
    return environment
