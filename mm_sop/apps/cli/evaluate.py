"""Evaluate a network with the protocols of the papers: python tools/evaluate.py CONFIG CHECKPOINT.

CONFIG is that of the training run. Finished protocols are not run again, and protocols without data are skipped. A
failed protocol is recorded, the others are run, and the exit status is not zero.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mm_sop.apps.cli.arguments import (
    ConfigOptions,
    add_config_options,
    add_encoder_arguments,
    add_launcher,
    command_parser,
    prepare_libraries,
)
from mm_sop.utils.failures import report_failures

if TYPE_CHECKING:
    from mmengine.config import Config

    from mm_sop.evaluation.context import EvaluationContext, Protocol


def parse_args() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config of the training run')
    parser.add_argument('checkpoint', type=Path, help='weights of the encoder')
    parser.add_argument('--protocols', nargs='+', metavar='NAME', help='default all')
    parser.add_argument(
        '--data', type=Path, default=Path('data/composites'), metavar='DIR', help='folder of the data (%(default)s)'
    )
    parser.add_argument('--work-dir', type=Path, help='results; default folder `evaluation` beside the checkpoint')
    parser.add_argument('--seed', type=int, default=0, help='seed of everything random')
    add_launcher(parser)
    add_config_options(parser)
    parser.add_argument(
        '--options', nargs='+', action=ConfigOptions, default={}, metavar='KEY=VALUE',
        help='changes to protocols, such as knn.num_neighbors=[10,20]',
    )  # fmt: skip
    group = parser.add_argument_group('encoder')
    add_encoder_arguments(group, 'timm:NAME, torchvision:NAME or a config; default CONFIG')
    group.add_argument('--interpolation', default='bicubic', metavar='FILTER', help='of the resizing (%(default)s)')
    group.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32', help='type of the features')
    return parser.parse_args()


def build_protocols(names: list[str] | None, options: dict) -> dict[str, 'Protocol']:
    """Build the named protocols, or all of them, with options by ``PROTOCOL.OPTION``.

    Raises:
        ValueError: A key is of another form, or names a protocol that was not chosen.
    """
    from mm_sop.evaluation.context import build_protocol, protocol_names

    names = names or protocol_names()
    by_protocol: dict[str, dict] = {name: {} for name in names}
    for key, value in options.items():
        name, _, option = key.partition('.')
        if name not in by_protocol or not option:
            raise ValueError(f'--options {key}: expected PROTOCOL.OPTION with a protocol among {", ".join(names)}')
        by_protocol[name][option] = value
    return {name: build_protocol(name, chosen) for name, chosen in by_protocol.items()}


def build_context(args: argparse.Namespace, config: 'Config', work_dir: Path) -> 'EvaluationContext':
    """Load the encoder and describe how images are prepared for it."""
    from mmengine.device import get_device

    from mm_sop.datasets.transforms.evaluation import EvaluationTransform
    from mm_sop.encoders.checkpoint import read_checkpoint
    from mm_sop.encoders.encoder import build_encoder
    from mm_sop.encoders.projector import load_projector
    from mm_sop.evaluation.context import EvaluationContext
    from mm_sop.evaluation.features.store import FeatureCache
    from mm_sop.utils.config import find_pipeline, view_size

    checkpoint = read_checkpoint(args.checkpoint)
    encoder = build_encoder(config, checkpoint, args.encoder, args.network, args.prefix)
    projector = None if args.encoder else load_projector(config, checkpoint, encoder.identity['prefix'])
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
    """Run the protocols, write results and page, and return the names of the protocols that failed."""
    from mmengine.dist import is_main_process

    from mm_sop.engine.cpu import prepare_cpu
    from mm_sop.engine.distributed import connect_processes
    from mm_sop.engine.processes import guard_run
    from mm_sop.evaluation.results import EvaluationResults
    from mm_sop.evaluation.run import run_protocols
    from mm_sop.report.evaluation import write_evaluation_page
    from mm_sop.utils.config import load_config, merge_options

    prepare_libraries()
    prepare_cpu()
    protocols = build_protocols(args.protocols, args.options)
    config = load_config(args.config)
    merge_options(config, args.cfg_options or {})
    config.launcher = args.launcher
    connect_processes(config.launcher, config.get('env_cfg', {}).get('dist_cfg'))
    work_dir = args.work_dir or args.checkpoint.parent / 'evaluation'
    context = build_context(args, config, work_dir)
    with guard_run(work_dir, args.launcher):
        records = run_protocols(protocols, context, EvaluationResults(work_dir))
        if is_main_process():
            page = write_evaluation_page(work_dir)
            print((work_dir / 'results.md').read_text(errors='backslashreplace'))
            print(f'Page: {page}')
    return [record['protocol'] for record in records if record['status'] == 'failed']


@report_failures('evaluate.py', ValueError, FileNotFoundError)
def main() -> None:
    args = parse_args()

    from mm_sop.encoders.checkpoint import trust_checkpoints

    with trust_checkpoints(args.trust):
        failed = evaluate(args)
    if failed:
        sys.exit(f'evaluate.py: failed: {", ".join(failed)}. The reasons are in results.md')


if __name__ == '__main__':
    main()
