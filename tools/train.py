"""Train a model: python tools/train.py CONFIG."""

import argparse

from mmengine.config import DictAction

from mm_sop.datasets.coco_checks import AnnotationError
from mm_sop.datasets.seeded_dataset import AllUnreadableError
from mm_sop.engine.checkpoints import CheckpointError
from mm_sop.engine.failures import report_failures
from mm_sop.engine.hooks.bad_image_hook import TooManyBadImagesError
from mm_sop.engine.hooks.collapse_guard_hook import CollapseError
from mm_sop.engine.launch import launch
from mm_sop.engine.optimizers.pretrain_optim_wrapper import NonFiniteLossError
from mm_sop.engine.weights import WeightsError, trust_checkpoints

UNUSABLE = (CheckpointError, WeightsError, AnnotationError, FileNotFoundError, NotADirectoryError)
HOPELESS = (TooManyBadImagesError, AllUnreadableError, NonFiniteLossError, CollapseError)


class ConfigOptions(DictAction):
    """DictAction with a message instead of a traceback."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError):
            parser.error(f'{option_string}: expected KEY=VALUE ..., got {" ".join(values)}')


def parse_args():
    parser = argparse.ArgumentParser(
        description='Train a model.',
        epilog='Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint and end with exit code 130, 143 and 0.',
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', metavar='DIR', help='results; default work_dirs/<name of the config>')
    parser.add_argument(
        '--resume',
        nargs='?',
        const=True,
        default=False,
        metavar='PATH',
        help='go on from this checkpoint, or without PATH from the latest one in the work directory',
    )
    parser.add_argument('--amp', action='store_true', help='train in bfloat16')
    parser.add_argument('--data', metavar='DIR', help='folder of the training pictures')
    parser.add_argument('--pretrained', metavar='CHECKPOINT', help="start from its backbone; 'none' for random weights")
    parser.add_argument('--trust', action='store_true', help='let code in the checkpoints that the config names run')
    parser.add_argument('--seed', type=int, help='random seed; default that of the config, or 0')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='changes to the config'
    )
    return parser.parse_args()


@report_failures('train.py', *UNUSABLE, *HOPELESS)
def main():
    options = vars(parse_args())
    with trust_checkpoints(options.pop('trust')):
        launch(**options)


if __name__ == '__main__':
    main()
