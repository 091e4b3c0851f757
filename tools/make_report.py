"""Write the report of a run, during or after it: WORK_DIR/report/index.html.

The config that the run has left in WORK_DIR is not run. One that needs parts of your own is given with --config.
"""

import argparse
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch import nn

import mm_sop  # noqa: F401
from mm_sop.engine.checkpoints import CheckpointError, find_latest
from mm_sop.engine.failures import report_failures
from mm_sop.engine.launch import load_config
from mm_sop.engine.safe_config import build_untrusted, check_config
from mm_sop.engine.weights import WeightsError, load_complete, read_state_dict
from mm_sop.visualization import write_report
from mm_sop.visualization.run_log import read_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, help='work directory of the run')
    parser.add_argument('--checkpoint', type=Path, help="default: the run's last one")
    parser.add_argument('--seed', type=int, default=0, help='seed for the choice of the pictures')
    parser.add_argument('--config', help='config of the run; default the one in WORK_DIR, as far as it is safe')
    parser.add_argument('--trust', action='store_true', help='let code in the checkpoint run')
    return parser.parse_args()


def load_model(config: Config, checkpoint: str | Path, trusted: bool) -> nn.Module:
    settings = dict(config.model)
    if 'data_preprocessor' in config:
        settings.setdefault('data_preprocessor', config.data_preprocessor)
    model = build_untrusted(MODELS, settings, str(checkpoint))
    load_complete(model, read_state_dict(checkpoint, trusted=trusted), str(checkpoint))
    return model.to('cuda' if torch.cuda.is_available() else 'cpu')


def find_config(args: argparse.Namespace) -> Config:
    if args.config:
        return load_config(args.config)
    sections = ('model', 'data_preprocessor', 'train_dataloader', 'custom_hooks')
    return check_config(read_config(args.work_dir), str(args.work_dir), *sections)


def make_report(args: argparse.Namespace) -> Path:
    config = find_config(args)
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    checkpoint = args.checkpoint or find_latest(args.work_dir)
    if checkpoint is None:
        print(f'no checkpoint in {args.work_dir}: the report is made without pictures of what the network sees')
    model = None if checkpoint is None else load_model(config, checkpoint, args.trust)
    return write_report(args.work_dir, config, model, args.seed)


@report_failures('make_report.py', WeightsError, CheckpointError, FileNotFoundError)
def main() -> None:
    print(make_report(parse_args()))


if __name__ == '__main__':
    main()
