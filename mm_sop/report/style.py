"""Style of all charts, in a light and a dark theme."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colors of a chart; the series are those of Okabe and Ito, which all kinds of color vision can distinguish.

    Attributes:
        name: ``'light'`` or ``'dark'``, the background that the colors are made for.
        ink: Color of text.
        quiet: Color of axes, and of lines for comparison.
        grid: Color of grid lines.
        series: Colors of lines, in the order of use.
    """

    name: str
    ink: str
    quiet: str
    grid: str
    series: tuple[str, ...]


LIGHT = Theme('light', '#24292f', '#6e7781', '#e4e8ec', ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00'))
DARK = Theme('dark', '#e6edf3', '#9aa4af', '#30363d', ('#56b4e9', '#f0883e', '#2fbf94', '#e0a3c6', '#f0c808'))

LINE_STYLES = ('-', '--', ':')
"""Styles of further lines when all colors of the series are used."""

PIXELS_PER_INCH = 100


@contextmanager
def chart_style(theme: Theme) -> Iterator[None]:
    """Set Matplotlib's defaults for one chart and restore them."""
    import matplotlib
    from cycler import cycler

    settings: dict = {
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
        'axes.prop_cycle': cycler(linestyle=LINE_STYLES) * cycler(color=theme.series),
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


def render(draw: Callable[..., 'Figure'], theme: Theme, transparent: bool = True) -> bytes:
    """Draw a chart in a theme, which ``draw`` gets by keyword, on a transparent or a white background.

    Returns:
        PNG, twice as fine as it is shown.
    """
    buffer = BytesIO()
    background = dict(transparent=True) if transparent else dict(transparent=False, facecolor='white')
    with chart_style(theme):
        draw(theme=theme).savefig(buffer, format='png', dpi=2 * PIXELS_PER_INCH, **background)
    return buffer.getvalue()
