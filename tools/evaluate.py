"""Evaluate a network with the protocols of the papers: python tools/evaluate.py CONFIG CHECKPOINT.

CONFIG is that of the training run. Finished protocols are not run again, and protocols without data are skipped. What
fails is recorded, the rest is run, and the exit status tells.
"""

import argparse
import sys
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.registry import init_default_scope

import mm_sop  # noqa: F401
from mm_sop.datasets.semantic_pairs import ManifestError
from mm_sop.datasets.transforms.loading import UnreadableImageError
from mm_sop.engine.cpu import prepare_cpu
from mm_sop.engine.failures import report_failures
from mm_sop.engine.launch import guard_run, load_config, merge_options, prepare_dist
from mm_sop.engine.weights import WeightsError, trust_checkpoints
from mm_sop.evaluation.cache import DTYPES, FeatureCache
from mm_sop.evaluation.encoders import build_encoder
from mm_sop.evaluation.evaluate import run_protocols
from mm_sop.evaluation.mining import find_pipeline, view_size
from mm_sop.evaluation.projector import load_projector
from mm_sop.evaluation.protocol import EvaluationContext, EvaluationTransform, Protocol, build_protocol, protocol_names
from mm_sop.evaluation.results import EvaluationResults
from mm_sop.visualization.evaluation import write_evaluation_page


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the training run')
    parser.add_argument('checkpoint', type=Path, help='weights of the encoder')
    parser.add_argument('--protocols', nargs='+', metavar='NAME', help='default all')
    parser.add_argument(
        '--data', type=Path, default=Path('data/composites'), metavar='DIR', help='folder of the data (%(default)s)'
    )
    parser.add_argument('--work-dir', type=Path, help='results; default folder `evaluation` beside the checkpoint')
    parser.add_argument('--seed', type=int, default=0, help='seed of all draws')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='changes to CONFIG')
    parser.add_argument(
        '--options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
        help='changes to protocols, such as knn.num_neighbors=[10,20]',
    )  # fmt: skip
    _add_encoder_arguments(parser.add_argument_group('encoder'))
    return parser.parse_args()


def _add_encoder_arguments(group) -> None:
    group.add_argument('--encoder', metavar='SOURCE', help='timm:NAME, torchvision:NAME or a config; default CONFIG')
    group.add_argument('--network', choices=['teacher', 'student'], default='teacher', help='where there are both')
    group.add_argument('--prefix', help="beginning of the encoder's names in the checkpoint; default found out")
    group.add_argument('--trust', action='store_true', help='let code in CHECKPOINT run')
    group.add_argument('--crop-size', type=int, help="side of the pictures; default that of CONFIG's first view")
    group.add_argument('--resize-edge', type=int, help='shorter side before the central crop; default 8/7 of it')
    group.add_argument('--interpolation', default='bicubic', metavar='FILTER', help='of the resizing (%(default)s)')
    group.add_argument('--dtype', choices=list(DTYPES), default='float32', help='type of the features')
    group.add_argument('--batch-size', type=int, default=256)
    group.add_argument('--num-workers', type=int, default=2)


def prepare_config(args: argparse.Namespace) -> Config:
    config = load_config(args.config)
    merge_options(config, args.cfg_options or {})
    config.launcher = args.launcher
    prepare_dist(config)
    return config


def build_protocols(names: list[str] | None, options: dict) -> dict[str, Protocol]:
    names = names or protocol_names()
    by_protocol = {name: {} for name in names}
    for key, value in options.items():
        name, _, option = key.partition('.')
        if name not in by_protocol or not option:
            raise ValueError(f'--options {key}: expected PROTOCOL.OPTION with a protocol among {", ".join(names)}')
        by_protocol[name][option] = value
    return {name: build_protocol(name, chosen) for name, chosen in by_protocol.items()}


def build_context(args: argparse.Namespace, config: Config, work_dir: Path) -> EvaluationContext:
    encoder = build_encoder(config, args.checkpoint, args.encoder, args.network, args.prefix)
    projector = None if args.encoder else load_projector(config, args.checkpoint, encoder.identity['prefix'])
    crop_size = args.crop_size or view_size(find_pipeline(config))
    return EvaluationContext(
        encoder=encoder.to(get_device()),
        data=args.data,
        work_dir=work_dir,
        cache=FeatureCache(work_dir / 'features', args.dtype),
        transform=EvaluationTransform(crop_size, args.resize_edge, args.interpolation),
        seed=args.seed,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        projector=projector and projector.to(get_device()),
    )


def evaluate(args: argparse.Namespace) -> list[str]:
    """Evaluate, and give the names of the protocols that failed."""
    prepare_cpu()
    chosen = build_protocols(args.protocols, args.options)
    config = prepare_config(args)
    work_dir = args.work_dir or args.checkpoint.parent / 'evaluation'
    context = build_context(args, config, work_dir)
    with guard_run(work_dir, args.launcher):
        records = run_protocols(chosen, context, EvaluationResults(work_dir))
        if is_main_process():
            page = write_evaluation_page(work_dir)
            print((work_dir / 'results.md').read_text(errors='backslashreplace'))
            print(f'Page: {page}')
    return [record['protocol'] for record in records if record['status'] == 'failed']


@report_failures('evaluate.py', ManifestError, WeightsError, UnreadableImageError, ValueError, FileNotFoundError)
def main() -> None:
    init_default_scope('mmpretrain')
    args = parse_args()
    with trust_checkpoints(args.trust):
        failed = evaluate(args)
    if failed:
        sys.exit(f'evaluate.py: failed: {", ".join(failed)}. The reasons are in results.md')


if __name__ == '__main__':
    main()
