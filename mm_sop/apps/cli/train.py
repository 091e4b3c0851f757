"""Train a model: python tools/train.py CONFIG."""

import argparse

from mm_sop.apps.cli.arguments import add_config_options, add_launcher, add_trust
from mm_sop.utils.failures import report_failures


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train a model.',
        epilog='Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint and exit with code 130, 143 and 0.',
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', metavar='DIR', help='results; default work_dirs/<name of the config>')
    resume = 'resume from this checkpoint, or without PATH from the latest one in the work directory'
    parser.add_argument('--resume', nargs='?', const=True, default=False, metavar='PATH', help=resume)
    parser.add_argument('--amp', action='store_true', help='train in bfloat16')
    parser.add_argument('--data', metavar='DIR', help='folder of the training images')
    parser.add_argument('--pretrained', metavar='CHECKPOINT', help="start from its backbone; 'none' for random weights")
    add_trust(parser, 'the checkpoints that the config names')
    parser.add_argument('--seed', type=int, help='random seed; default that of the config, or 0')
    add_launcher(parser)
    add_config_options(parser, 'the config')
    return parser.parse_args()


@report_failures('train.py', FileNotFoundError, NotADirectoryError)
def main() -> None:
    options = vars(parse_args())

    from mm_sop.encoders.checkpoint import trust_checkpoints
    from mm_sop.engine.launch import launch

    with trust_checkpoints(options.pop('trust')):
        launch(**options)


if __name__ == '__main__':
    main()
