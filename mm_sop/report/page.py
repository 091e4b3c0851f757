"""The items of a page, and one self-contained HTML page made of them."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

from jinja2 import Environment
from matplotlib.figure import Figure

from mm_sop.report.style import DARK, LIGHT, Theme, render
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
    def drawn(cls, name: str, draw: Callable[[Theme], Figure], text: str) -> 'Chart':
        """Draw a chart in both themes.

        Args:
            name: Name of its files, without extension.
            draw: Makes the figure for a theme.
            text: Alternative text.
        """
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
    """Rows of text under a heading row.

    Attributes:
        heading: Titles of the columns.
        rows: Cells of every row.
        wrap: Whether long cells may break; cells are then aligned to the left.
    """

    kind: ClassVar[str] = 'table'
    files: ClassVar[Mapping[str, bytes]] = {}

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    wrap: bool = False


@dataclass(frozen=True)
class Details:
    """Long text or a long table that is folded away.

    Attributes:
        title: What is always visible.
        content: The table, or preformatted text.
    """

    kind: ClassVar[str] = 'details'
    files: ClassVar[Mapping[str, bytes]] = {}

    title: str
    content: str | Table


Item = Chart | Photo | Table | Details


@dataclass(frozen=True)
class Section:
    """Part of a page.

    Attributes:
        title: Heading; empty for the first part.
        text: Explanation under the heading.
        items: Charts, montages and tables.
    """

    title: str
    text: str
    items: Sequence[Item] = field(default_factory=tuple)


def render_page(title: str, answer: str, opening: str, summary: str, sections: Sequence[Section]) -> str:
    """Render a page.

    Args:
        title: Name of the run.
        answer: ``'yes'`` and ``'no'`` color the opening, anything else does not.
        opening: First sentence, emphasized.
        summary: What follows it.
        sections: All parts in order.

    Returns:
        HTML that loads nothing.
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
