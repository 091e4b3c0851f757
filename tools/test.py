"""Average precision of a trained detector: python tools/test.py CONFIG CHECKPOINT.

Writes <name of the checkpoint>.json and .md: on COCO the average precision of boxes and masks.
"""

import argparse
from pathlib import Path

from mmengine.config import DictAction
from mmengine.dist import is_main_process

from mm_sop.datasets.coco_checks import AnnotationError
from mm_sop.datasets.transforms.loading import UnreadableImageError
from mm_sop.engine.cpu import prepare_cpu
from mm_sop.engine.failures import report_failures
from mm_sop.engine.launch import guard_run, load_config, merge_options, set_data_root
from mm_sop.engine.weights import WeightsError
from mm_sop.evaluation.detection import evaluate_detector, format_result


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the training run')
    parser.add_argument('checkpoint', type=Path, help='weights of the detector')
    parser.add_argument('--work-dir', type=Path, help="results; default 'test' beside the checkpoint")
    parser.add_argument('--data', metavar='DIR', help='folder of the data set, as for train.py')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--trust', action='store_true', help='let code in CHECKPOINT run')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='changes to CONFIG')
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    prepare_cpu()
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


@report_failures('test.py', WeightsError, AnnotationError, UnreadableImageError, FileNotFoundError)
def main() -> None:
    run(parse_args())


if __name__ == '__main__':
    main()
