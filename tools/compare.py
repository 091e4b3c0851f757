"""Put several runs side by side on one page: python tools/compare.py RUN RUN ..."""

import argparse
import sys
from pathlib import Path

from mmengine.registry import init_default_scope

import mm_sop  # noqa: F401
from mm_sop.engine.weights import WeightsError
from mm_sop.visualization.compare import read_runs, write_comparison


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='work directory of a run')
    parser.add_argument('--out', type=Path, default='work_dirs/compare', help='folder of the page (%(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    init_default_scope('mmpretrain')
    try:
        page = write_comparison(read_runs(args.runs), args.out)
    except (FileNotFoundError, WeightsError, ValueError) as error:
        sys.exit(f'compare.py: {error}')
    print(page.with_name('compare.md').read_text())
    print(page)


if __name__ == '__main__':
    main()
