"""Put several runs side by side on one page: python tools/compare.py RUN RUN ..."""

import argparse
from pathlib import Path

from mmengine.registry import init_default_scope

import mm_sop  # noqa: F401
from mm_sop.engine.failures import report_failures
from mm_sop.engine.weights import WeightsError
from mm_sop.visualization.compare import read_runs, write_comparison


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='work directory of a run')
    parser.add_argument('--out', type=Path, default='work_dirs/compare', help='folder of the page (%(default)s)')
    return parser.parse_args()


@report_failures('compare.py', FileNotFoundError, WeightsError, ValueError)
def main() -> None:
    args = parse_args()
    init_default_scope('mmpretrain')
    page = write_comparison(read_runs(args.runs), args.out)
    print(page.with_name('compare.md').read_text(errors='backslashreplace'))
    print(page)


if __name__ == '__main__':
    main()
