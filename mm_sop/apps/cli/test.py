"""Evaluate a trained detector: python tools/test.py CONFIG CHECKPOINT.

Writes <name of the checkpoint>.json and .md with its metrics, on COCO the average precision of boxes and masks.
"""

import argparse
from pathlib import Path

from mm_sop.apps.cli.arguments import add_config_options, add_launcher, add_trust, command_parser
from mm_sop.utils.failures import report_failures


def parse_args() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config of the training run')
    parser.add_argument('checkpoint', type=Path, help='weights of the detector')
    parser.add_argument('--work-dir', type=Path, help="folder of the results; default 'test' beside the checkpoint")
    parser.add_argument('--data', metavar='DIR', help='folder of the dataset, as for train.py')
    add_launcher(parser)
    add_trust(parser)
    add_config_options(parser)
    return parser.parse_args()


@report_failures('test.py', FileNotFoundError)
def main() -> None:
    args = parse_args()

    from mmengine.dist import is_main_process

    from mm_sop import compat
    from mm_sop.engine.detection import evaluate_detector, format_result
    from mm_sop.engine.launch import set_data_root
    from mm_sop.engine.processes import guard_run
    from mm_sop.utils.config import load_config, merge_options

    compat.apply()
    config = load_config(args.config)
    merge_options(config, args.cfg_options or {})
    if args.data is not None:
        set_data_root(config, args.data)
    config.launcher = args.launcher
    work_dir = args.work_dir or args.checkpoint.parent / 'test'
    with guard_run(work_dir, args.launcher):
        result = evaluate_detector(config, args.checkpoint, work_dir, args.trust)
    if is_main_process():
        print(f'{format_result(result)}\nWritten to {work_dir}')


if __name__ == '__main__':
    main()
