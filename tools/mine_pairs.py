"""Find semantic positive pairs for SePP with a frozen encoder: python tools/mine_pairs.py CONFIG CHECKPOINT.

CONFIG is that of the training run which is to use the pairs: it says which pictures are compared. CHECKPOINT holds the
encoder, which should be self-supervised and trained on the same data.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.registry import init_default_scope

import mm_sop  # noqa: F401
from mm_sop.datasets.semantic_pairs import ManifestError, describe_data, picture_info
from mm_sop.engine.channel_order import loading_order
from mm_sop.engine.failures import report_failures
from mm_sop.engine.launch import (
    check_data,
    guard_run,
    load_config,
    merge_options,
    prepare_dist,
    set_data_root,
)
from mm_sop.engine.weights import WeightsError, trust_checkpoints
from mm_sop.evaluation.cache import FeatureShards
from mm_sop.evaluation.encoders import build_encoder
from mm_sop.evaluation.knn import read_labels
from mm_sop.evaluation.mining import (
    PlainPictures,
    Selection,
    choose_images,
    make_manifest,
    mine,
    write_manifest,
)
from mm_sop.visualization.montage import to_picture
from mm_sop.visualization.pairs import write_pair_report

_SOURCES = 'timm:NAME, torchvision:NAME, dinov2, ibot, timm, torchvision, mmpretrain or a config; default CONFIG'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the training run')
    parser.add_argument('checkpoint', help='weights of the encoder')
    parser.add_argument('--data', metavar='DIR', help='folder of the training pictures, as for train.py')
    parser.add_argument('--work-dir', type=Path, help='results; default work_dirs/pairs/<name of the config>')
    parser.add_argument('--name', default='pairs', help='name of the manifest in the work directory')
    parser.add_argument('--seed', type=int, default=0, help='seed of the choice of pictures and of random pairs')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='changes to CONFIG')
    parser.add_argument('--launcher', choices=['none', 'pytorch'], default='none')
    _add_encoder_arguments(parser.add_argument_group('encoder'))
    _add_selection_arguments(parser.add_argument_group('selection'))
    return parser.parse_args()


def _add_encoder_arguments(group) -> None:
    group.add_argument('--encoder', metavar='SOURCE', help=_SOURCES)
    group.add_argument('--network', choices=['teacher', 'student'], default='teacher', help='where there are both')
    group.add_argument('--prefix', help="beginning of the encoder's names in the checkpoint; default found out")
    group.add_argument('--trust', action='store_true', help='let code in CHECKPOINT run')
    group.add_argument('--crop-size', type=int, help="side of the pictures; default that of CONFIG's first view")
    group.add_argument('--resize-edge', type=int, help='shorter side before the central crop; default 8/7 of it')
    group.add_argument('--batch-size', type=int, default=256)
    group.add_argument('--num-workers', type=int, default=2)
    group.add_argument('--shard-size', type=int, default=4096, help='pictures encoded between two savings')


def _add_selection_arguments(group) -> None:
    defaults = Selection()
    group.add_argument('--num-images', type=int, metavar='K', help='default all, or a tenth of more than 200,000')
    group.add_argument('--lower', type=float, help='lower bound of the cosine; default the suggested one')
    group.add_argument('--upper', type=float, default=defaults.upper, help='upper bound (%(default)s)')
    group.add_argument('--max-per-anchor', type=_cap, default=1, metavar='N', help="partners to choose, or 'all'")
    group.add_argument('--max-partner-uses', type=_cap, default=5, metavar='N', help="times to be chosen, or 'all'")
    group.add_argument('--mutual', action='store_true', help='both must have chosen each other')
    group.add_argument('--budget', type=float, default=defaults.budget, help='pairs per picture when suggesting')
    group.add_argument('--num-random', type=int, default=1_000_000, help='random pairs for the calibration')
    group.add_argument('--block-size', type=int, default=2048, help='rows and columns compared at once')
    group.add_argument('--folder-labels', action='store_true', help='folders are classes, for the precision reported')


def _cap(text: str) -> int | None:
    return None if text == 'all' else int(text)


def prepare_config(args: argparse.Namespace) -> Config:
    config = load_config(args.config)
    merge_options(config, args.cfg_options or {})
    if args.data is not None:
        set_data_root(config, args.data)
    check_data(config)
    config.launcher = args.launcher
    prepare_dist(config)
    return config


def read_classes(args: argparse.Namespace, pictures: PlainPictures, images: np.ndarray) -> np.ndarray | None:
    """Classes for the report, where they are known."""
    if not hasattr(pictures.dataset, 'get_data_info'):
        return None
    if not args.folder_labels:
        return read_labels(pictures.dataset, 'class', images)
    folders = [str(Path(picture_info(pictures.dataset, index)['img_path']).parent) for index in images.tolist()]
    return np.unique(folders, return_inverse=True)[1]


def encode(args: argparse.Namespace, config: Config, pictures: PlainPictures, images: np.ndarray):
    """Features of the chosen pictures on the disk, and what they depend on."""
    order = loading_order(pictures.transform)
    encoder = build_encoder(config, args.checkpoint, args.encoder, args.network, args.prefix, order)
    definition = dict(
        data=describe_data(pictures.dataset), encoder=encoder.identity, transform=pictures.transform, seed=args.seed
    )
    shards = FeatureShards(args.work_dir / 'features', images, definition, args.shard_size)
    shards.encode(encoder.to(get_device()), pictures, args.batch_size, args.num_workers)
    return shards, definition


def mine_pairs(args: argparse.Namespace, config: Config) -> None:
    pictures = PlainPictures(config, args.crop_size, args.resize_edge)
    images = choose_images(len(pictures), args.num_images, args.seed)
    shards, definition = encode(args, config, pictures, images)
    if not is_main_process():
        return
    if not torch.cuda.is_available():
        # The other processes are done.
        torch.set_num_threads(torch.get_num_threads() * get_world_size())
    features = shards.load()
    selection = Selection(**{name: getattr(args, name) for name in Selection.__dataclass_fields__})
    labels = read_classes(args, pictures, images)
    mined = mine(features, selection, labels, args.num_random, args.seed, args.block_size)
    manifest = make_manifest(mined, selection, images, definition)
    write_manifest(manifest, args.work_dir / f'{args.name}.json')
    is_bgr = loading_order(pictures.transform) == 'bgr'
    write_pair_report(
        args.work_dir,
        mined,
        features,
        lambda row: to_picture(pictures[int(images[row])]['inputs'], is_bgr),
        Path(args.config).stem,
        args.seed,
    )
    print((args.work_dir / 'report.md').read_text(errors='backslashreplace'))
    print(f'Manifest: {args.work_dir / args.name}.json. Look at {args.work_dir}/gallery.png before training with it.')


@report_failures('mine_pairs.py', ManifestError, WeightsError, ValueError, FileNotFoundError)
def main() -> None:
    init_default_scope('mmpretrain')
    args = parse_args()
    config = prepare_config(args)
    args.work_dir = args.work_dir or Path('work_dirs/pairs', Path(args.config).stem)
    with guard_run(args.work_dir, args.launcher), trust_checkpoints(args.trust):
        mine_pairs(args, config)


if __name__ == '__main__':
    main()
