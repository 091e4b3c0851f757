"""One self-contained HTML page."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from matplotlib.figure import Figure

from mm_sop.visualization.style import DARK, LIGHT, Theme, render

_STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --quiet: #57606a; --ground: #ffffff; --panel: #f6f8fa;
  --line: #d8dee4; --yes: #006f51; --no: #b04a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --quiet: #9aa4af; --ground: #0f1317;
  --panel: #171c22; --line: #30363d; --yes: #2fbf94; --no: #f0883e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 20px 16px 48px; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.05rem; font-weight: 600; color: var(--quiet); margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 40px 0 4px; padding-top: 16px; border-top: 1px solid var(--line); }
p { margin: 6px 0 12px; max-width: 72ch; }
.lead { font-size: 1.3rem; line-height: 1.4; margin: 0 0 12px; max-width: 46em; }
.lead .yes { color: var(--yes); } .lead .no { color: var(--no); }
.text, figcaption { color: var(--quiet); font-size: 0.92rem; }
.figures { display: flex; flex-wrap: wrap; gap: 16px 24px; align-items: flex-end; }
figure { margin: 0; max-width: 100%; }
.chart img { display: block; max-width: 100%; height: auto; }
.scroll { overflow-x: auto; max-width: 100%; }
.scroll img { display: block; max-width: none; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--quiet); } th:first-child, td:first-child { text-align: left; }
table.wrap th, table.wrap td { text-align: left; }
table.wrap td { white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
pre { background: var(--panel); padding: 12px; overflow-x: auto; font-size: 0.8rem; line-height: 1.4; }
summary { cursor: pointer; color: var(--quiet); }
"""


@dataclass(frozen=True)
class Chart:
    """A chart in both themes.

    Attributes:
        name: Name of its files, without extension.
        light: PNG for a light background, twice as fine as it is shown.
        dark: PNG for a dark background.
        text: What it shows, for those who cannot see it.
    """

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
            text: What it shows.
        """
        return cls(name, render(draw, LIGHT), render(draw, DARK), text)

    @property
    def files(self) -> dict[str, bytes]:
        """Content by file name."""
        return {f'{self.name}.png': self.light, f'{self.name}_dark.png': self.dark}

    def to_html(self) -> str:
        return (
            f'<figure class="chart"><picture><source media="(prefers-color-scheme: dark)" srcset="{_inline(self.dark)} '
            f'2x"><img src="{_inline(self.light)}" width="{_shown_width(self.light)}" alt="{escape(self.text)}">'
            '</picture></figure>'
        )


@dataclass(frozen=True)
class Photo:
    """A montage for any background; it is scrolled sideways on small screens.

    Attributes:
        name: Name of its file, without extension.
        image: PNG, twice as fine as it is shown.
        text: What it shows.
    """

    name: str
    image: bytes
    text: str

    @property
    def files(self) -> dict[str, bytes]:
        """Content by file name."""
        return {f'{self.name}.png': self.image}

    def to_html(self) -> str:
        return (
            f'<figure class="scroll"><img src="{_inline(self.image)}" width="{_shown_width(self.image)}" '
            f'alt="{escape(self.text)}"></figure>'
        )


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading row.

    Attributes:
        heading: Titles of the columns.
        rows: Cells of every row.
        wrap: Whether long cells may break, and are set to the left.
    """

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    wrap: bool = False
    files = {}

    def to_html(self) -> str:
        heading = ''.join(f'<th>{escape(cell)}</th>' for cell in self.heading)
        rows = ''.join(f'<tr>{"".join(f"<td>{escape(cell)}</td>" for cell in row)}</tr>' for row in self.rows)
        return (
            f'<div class="scroll"><table{" class=wrap" if self.wrap else ""}><thead><tr>{heading}</tr></thead>'
            f'<tbody>{rows}</tbody></table></div>'
        )


@dataclass(frozen=True)
class Details:
    """Long text or a long table that is folded away.

    Attributes:
        title: What is always seen.
        content: The table, or the text, set as it is.
    """

    title: str
    content: str | Table
    files = {}

    def to_html(self) -> str:
        is_table = isinstance(self.content, Table)
        content = self.content.to_html() if is_table else f'<pre>{escape(self.content)}</pre>'
        return f'<details><summary>{escape(self.title)}</summary>{content}</details>'


Item = Chart | Photo | Table | Details


@dataclass(frozen=True)
class Section:
    """Part of the page.

    Attributes:
        title: Heading; empty for the first part.
        text: What is to be seen.
        items: Charts, pictures and tables.
    """

    title: str
    text: str
    items: Sequence[Item] = field(default_factory=tuple)

    def to_html(self) -> str:
        heading = f'<h2>{escape(self.title)}</h2>' if self.title else ''
        text = f'<p class="text">{escape(self.text)}</p>' if self.text else ''
        return f'{heading}{text}<div class="figures">{"".join(item.to_html() for item in self.items)}</div>'


def render_page(title: str, answer: str, opening: str, figures: str, sections: Sequence[Section]) -> str:
    """Put a page together.

    Args:
        title: Name of the run.
        answer: ``'yes'``, ``'no'`` or anything else; it colours the opening.
        opening: The first thing to be read.
        figures: The second.
        sections: All parts in order.

    Returns:
        HTML that loads nothing.
    """
    body = '\n'.join(section.to_html() for section in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1>'
        f'<p class="lead"><strong class="{escape(answer.split()[0])}">{escape(opening)}</strong> {escape(figures)}'
        f'</p>\n{body}\n</body></html>\n'
    )


def _inline(image: bytes) -> str:
    return f'data:image/png;base64,{base64.b64encode(image).decode()}'


def _shown_width(image: bytes) -> int:
    """Half of the width that a PNG states in its header."""
    return int.from_bytes(image[16:20], 'big') // 2
