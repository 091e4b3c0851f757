"""Compare several runs on one page: python tools/compare.py RUN RUN ..."""

import argparse
from pathlib import Path

from mm_sop.apps.cli.arguments import command_parser, prepare_libraries
from mm_sop.utils.failures import report_failures


def parse_args() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='work directory of a run')
    parser.add_argument('--out', type=Path, default='work_dirs/compare', help='folder of the page (%(default)s)')
    return parser.parse_args()


@report_failures('compare.py', FileNotFoundError, ValueError)
def main() -> None:
    args = parse_args()

    from mm_sop.report.compare import read_runs, write_comparison

    prepare_libraries()
    page = write_comparison(read_runs(args.runs), args.out)
    print(page.with_name('compare.md').read_text(errors='backslashreplace'))
    print(page)


if __name__ == '__main__':
    main()
