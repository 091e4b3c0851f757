"""Markdown tables."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]], align: Sequence[str] | None = None) -> str:
    """Format a Markdown table.

    Cells are text, so that the caller formats the numbers. ``|`` is escaped, line breaks become spaces. ``align`` is
    ``'left'``, ``'right'`` or ``'center'`` for each column; by default only the first one is aligned to the left, the
    others to the right.

    Example:
        >>> print(markdown_table(['readout', 'accuracy'], [['global', '61.2']]))
        | readout   |   accuracy |
        |:----------|-----------:|
        | global    |       61.2 |
    """
    align = align or ['left', *['right'] * (len(headers) - 1)]
    cells = [[_escape(cell) for cell in row] for row in rows]
    return tabulate(cells, [_escape(title) for title in headers], 'pipe', colalign=align, disable_numparse=True)


def _escape(cell: str) -> str:
    return ' '.join(cell.splitlines()).replace('|', r'\|')
