"""Draws the coverage badge of the README.

Usage: python tools/dev/coverage_badge.py [COVERAGE.JSON]

Reads the report that .ci/run writes, by default ``.cache/coverage_report.json``. Writes ``docs/images/coverage.svg``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BADGE = """\
<svg xmlns="http://www.w3.org/2000/svg" width="104" height="20" role="img" aria-label="coverage: {percent} %">
  <rect width="104" height="20" rx="3" fill="#555"/>
  <path fill="{color}" d="M62 0h39a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3H62z"/>
  <g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
    <text x="31" y="14">coverage</text>
    <text x="83" y="14">{percent} %</text>
  </g>
</svg>
"""


def draw(report: dict) -> str:
    """Draw the badge for a report of coverage.py. Percentages are rounded down: 100 means every line."""
    percent = int(report['totals']['percent_covered'])
    color = '#2e7d32' if percent >= 90 else '#b26a00' if percent >= 75 else '#b3261e'
    return BADGE.format(percent=percent, color=color)


if __name__ == '__main__':
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / '.cache/coverage_report.json'
    target = ROOT / 'docs/images/coverage.svg'
    target.write_text(draw(json.loads(source.read_text())))
    print(f'{target.relative_to(ROOT)} shows {source}')
