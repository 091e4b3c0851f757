"""Train a config's backbone with labels, on the bank of its k-NN evaluation, and evaluate it by the same k-NN protocol.

The result is a ceiling for self-supervised training of the same backbone on the same images. It is written to
``supervised_ceiling.json`` in the work directory of the config's run, where the report finds it.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, HOOKS, MODELS
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mm_sop.evaluation.classification.knn_evaluator import KNNEvaluator
from mm_sop.evaluation.classification.knn_records import describe_score, format_score
from mm_sop.evaluation.features.extraction import evaluation_mode
from mm_sop.models.utils.tokens import split_features
from mm_sop.report.report import CEILING
from mm_sop.utils.config import find_knn_settings
from mm_sop.utils.files import write_atomically


@MODELS.register_module()
class GlobalReadout(nn.Module):
    """[CLS] or the mean of the feature map, as the self-supervised network is read out."""

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (split_features(features)[0],)


@HOOKS.register_module()
class TimeBudgetHook(Hook):
    """Ends training after a time, with a cosine schedule of the learning rate over that time."""

    def __init__(self, minutes: float, warmup: float = 0.05) -> None:
        self.seconds = 60 * minutes
        self.warmup = warmup

    def before_train(self, runner) -> None:
        self.peaks = [group['lr'] for group in runner.optim_wrapper.param_groups]
        self.start = time.perf_counter()

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        progress = min(1.0, (time.perf_counter() - self.start) / self.seconds)
        factor = min(progress / self.warmup, (1 + math.cos(math.pi * progress)) / 2)
        for group, peak in zip(runner.optim_wrapper.param_groups, self.peaks, strict=True):
            group['lr'] = peak * factor

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if time.perf_counter() - self.start >= self.seconds:
            runner.train_loop.stop_training = True


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path, help='config of a self-supervised run, with a KNNHook')
    parser.add_argument('--work-dir', type=Path, help='default: that of training')
    parser.add_argument('--minutes', type=float, default=3.0, help='time for training')
    parser.add_argument('--lr', type=float, default=1e-3, help='largest learning rate of AdamW')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='changes to the config, key=value')
    args = parser.parse_args()
    if args.minutes <= 0:
        parser.error(f'--minutes must be positive, got {args.minutes}')
    return args


def view_pipeline(config: Config) -> list[dict]:
    """Loading and the augmentations of the first view of the config's training images."""
    dataset = config.train_dataloader.dataset
    load, *rest = dataset.get('dataset', dataset).pipeline
    views = next((transform for transform in rest if transform['type'] in ('MultiView', 'FastMultiView')), None)
    if views is None:
        raise SystemExit('the training pipeline of the config has no FastMultiView: there are no augmentations to take')
    return [load, *views['transforms'][0], dict(type='PackInputs')]


def build_classifier(config: Config, num_classes: int, side: int) -> dict:
    backbone = MODELS.build(config.model.backbone)
    with torch.no_grad(), evaluation_mode(backbone):
        width = split_features(backbone(torch.zeros(1, 3, side, side)))[0].shape[1]
    preprocessor = dict(config.model.get('data_preprocessor') or config.data_preprocessor)
    return dict(
        type='ImageClassifier',
        data_preprocessor={key: value for key, value in preprocessor.items() if key != 'type'},
        backbone=config.model.backbone,
        neck=dict(type='GlobalReadout'),
        head=dict(type='LinearClsHead', num_classes=num_classes, in_channels=width),
    )


def train(config: Config, bank: dict, work_dir: Path, args: argparse.Namespace) -> Runner:
    settings = dict(bank, pipeline=view_pipeline(config))
    dataset = DATASETS.build(settings)
    side = dataset[0]['inputs'].shape[-1]
    runner = Runner(
        model=build_classifier(config, len(dataset.metainfo['classes']), side),
        work_dir=str(work_dir / 'supervised'),
        train_dataloader=dict(
            batch_size=min(args.batch_size, len(dataset)),
            num_workers=1,
            dataset=settings,
            sampler=dict(type='InfiniteSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=10**9),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=args.lr, weight_decay=0.05)),
        custom_hooks=[dict(type='TimeBudgetHook', minutes=args.minutes)],
        # The number of iterations is unknown, so no remaining time is shown.
        default_hooks=dict(checkpoint=None, timer=None, logger=dict(type='LoggerHook', interval=50)),
        randomness=dict(seed=args.seed),
        default_scope='mmpretrain',
    )
    runner.train()
    return runner


def evaluate(model: nn.Module, knn: dict) -> dict[str, dict]:
    names = ('bank', 'queries', 'labels', 'num_neighbors', 'temperature', 'batch_size', 'num_workers')
    evaluator = KNNEvaluator(**{name: knn[name] for name in names if name in knn})

    def encode(batch: dict) -> dict[str, Tensor]:
        return dict(features=model.extract_feat(model.data_preprocessor(batch, False)['inputs'])[-1])

    with evaluation_mode(model):
        return evaluator.evaluate(encode)['features']


def main() -> None:
    args = parse_args()
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options or {})
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    knn = find_knn_settings(config)
    if knn is None:
        raise SystemExit(f'{args.config} has no KNNHook: there are no labeled images')
    work_dir = args.work_dir or Path('work_dirs', args.config.stem)
    runner = train(config, knn['bank'], work_dir, args)
    scores = evaluate(runner.model, knn)
    training = dict(
        minutes=args.minutes, iterations=runner.iter, lr=args.lr, batch_size=args.batch_size, seed=args.seed
    )
    record = dict(
        network='supervised', iter=None, epoch=None, seconds=60 * args.minutes, scores=scores, training=training
    )
    write_atomically(work_dir / CEILING, json.dumps(record, indent=1))
    for name, score in scores.items():
        print(f'{describe_score(name):32} {format_score(score)} %')
    print(f'written to {work_dir / CEILING}')


if __name__ == '__main__':
    main()
