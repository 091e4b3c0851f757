"""One quiet style for all charts, in a light and a dark variant."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import matplotlib
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colours of a chart; the series are those of Okabe and Ito, apart for all kinds of colour vision.

    Attributes:
        name: ``'light'`` or ``'dark'``, the background that the colours are made for.
        ink: Text.
        quiet: Axes, and lines that serve for comparison.
        grid: Grid lines.
        series: Lines, in the order of use.
    """

    name: str
    ink: str
    quiet: str
    grid: str
    series: tuple[str, ...]


LIGHT = Theme('light', '#24292f', '#6e7781', '#e4e8ec', ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00'))
DARK = Theme('dark', '#e6edf3', '#9aa4af', '#30363d', ('#56b4e9', '#f0883e', '#2fbf94', '#e0a3c6', '#f0c808'))
THEMES = (LIGHT, DARK)

LINE_STYLES = ('-', '--', ':')
"""Styles of further lines, once all colours of the series are in use."""

PIXELS_PER_INCH = 100


@contextmanager
def chart_style(theme: Theme) -> Iterator[None]:
    """Set Matplotlib's defaults for one chart, without touching those of the process."""
    settings = {
        'font.family': 'sans-serif',
        'font.sans-serif': ['DejaVu Sans'],
        'font.size': 10,
        'axes.titlesize': 10.5,
        'axes.titlelocation': 'left',
        'axes.titleweight': 'bold',
        'axes.labelcolor': theme.ink,
        'axes.titlecolor': theme.ink,
        'axes.edgecolor': theme.quiet,
        'axes.spines.top': False,
        'axes.spines.right': False,
        'axes.grid': True,
        'axes.grid.axis': 'y',
        'axes.axisbelow': True,
        'axes.prop_cycle': matplotlib.cycler(linestyle=LINE_STYLES) * matplotlib.cycler(color=theme.series),
        'grid.color': theme.grid,
        'text.color': theme.ink,
        'xtick.color': theme.quiet,
        'ytick.color': theme.quiet,
        'xtick.labelcolor': theme.ink,
        'ytick.labelcolor': theme.ink,
        'lines.linewidth': 1.8,
        'legend.frameon': False,
        'legend.fontsize': 9,
        'figure.constrained_layout.use': True,
        'savefig.transparent': True,
    }
    with matplotlib.rc_context(settings):
        yield


def render(draw: Callable[[Theme], Figure], theme: Theme, transparent: bool = True) -> bytes:
    """Draw a chart in a theme.

    Args:
        draw: Makes the figure.
        theme: The theme.
        transparent: Whether the page shows through, whose background the theme has to suit; else it is white.

    Returns:
        PNG, twice as fine as it is to be shown.
    """
    buffer = BytesIO()
    background = dict(transparent=True) if transparent else dict(transparent=False, facecolor='white')
    with chart_style(theme):
        draw(theme).savefig(buffer, format='png', dpi=2 * PIXELS_PER_INCH, **background)
    return buffer.getvalue()
