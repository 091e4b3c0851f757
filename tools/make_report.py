"""Write the report of a run, during or after it: WORK_DIR/report/index.html."""

import argparse
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import find_latest_checkpoint, load_checkpoint
from mmpretrain.registry import MODELS
from torch import nn

import mm_sop  # noqa: F401
from mm_sop.engine.failures import report_failures
from mm_sop.visualization import write_report
from mm_sop.visualization.run_log import read_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', type=Path, help='work directory of the run')
    parser.add_argument('--checkpoint', type=Path, help="default: the run's last one")
    parser.add_argument('--seed', type=int, default=0, help='seed for the choice of the pictures')
    return parser.parse_args()


def load_model(config: Config, checkpoint: str | Path) -> nn.Module:
    settings = dict(config.model)
    if 'data_preprocessor' in config:
        settings.setdefault('data_preprocessor', config.data_preprocessor)
    model = MODELS.build(settings)
    load_checkpoint(model, str(checkpoint), map_location='cpu', strict=True)
    return model.to('cuda' if torch.cuda.is_available() else 'cpu')


@report_failures('make_report.py')
def main() -> None:
    args = parse_args()
    try:
        config = read_config(args.work_dir)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    if args.checkpoint is not None and not args.checkpoint.is_file():
        raise SystemExit(f'no checkpoint {args.checkpoint}')
    checkpoint = args.checkpoint or find_latest_checkpoint(str(args.work_dir))
    if checkpoint is None:
        print(f'no checkpoint in {args.work_dir}: the report is made without pictures of what the network sees')
    model = None if checkpoint is None else load_model(config, checkpoint)
    print(write_report(args.work_dir, config, model, args.seed))


if __name__ == '__main__':
    main()
