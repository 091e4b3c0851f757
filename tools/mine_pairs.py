"""Find semantic positive pairs for SePP with a frozen encoder: python tools/mine_pairs.py CONFIG CHECKPOINT.

CONFIG is that of the training run which is to use the pairs: it says which pictures are compared. CHECKPOINT holds the
encoder, which should be self-supervised and trained on the same data.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import get_world_size, init_dist, is_main_process
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from PIL import Image

import mm_sop
from mm_sop.datasets.semantic_pairs import ManifestError, PairManifest, describe_data, picture_info
from mm_sop.engine.atomic import write_atomically
from mm_sop.engine.launch import LaunchError, check_data, load_config, merge_options, prepare_cpu_dist, set_data_root
from mm_sop.engine.weights import WeightsError
from mm_sop.evaluation.encoders import build_encoder
from mm_sop.evaluation.knn import read_labels
from mm_sop.evaluation.mining import (
    FeatureShards,
    MinedPairs,
    PlainPictures,
    Selection,
    choose_images,
    format_report,
    mine,
    write_manifest,
)
from mm_sop.functional.semantic_pairs import pair_cosines
from mm_sop.visualization.montage import to_picture, to_png
from mm_sop.visualization.pairs import pair_gallery, similarity_chart
from mm_sop.visualization.style import LIGHT, render


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
    group.add_argument('--encoder', metavar='SOURCE', help='timm:NAME, torchvision:NAME or a config; default CONFIG')
    group.add_argument('--network', choices=['teacher', 'student'], default='teacher', help='where there are both')
    group.add_argument('--prefix', help="beginning of the encoder's names in the checkpoint; default found out")
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
    if args.launcher != 'none' and torch.cuda.is_available():
        init_dist(args.launcher)
    prepare_cpu_dist(config)
    return config


def read_classes(args: argparse.Namespace, pictures: PlainPictures, images: np.ndarray) -> np.ndarray | None:
    """Classes for the report, where they are known."""
    if not hasattr(pictures.dataset, 'get_data_info'):
        return None
    if not args.folder_labels:
        return read_labels(pictures.dataset, 'class', images)
    folders = [str(Path(picture_info(pictures.dataset, index)['img_path']).parent) for index in images.tolist()]
    return np.unique(folders, return_inverse=True)[1]


def encode(args: argparse.Namespace, config: Config, pictures: PlainPictures, images: np.ndarray, data: dict):
    """Features of the chosen pictures on the disk, and what they depend on."""
    encoder = build_encoder(config, args.checkpoint, args.encoder, args.network, args.prefix)
    definition = dict(data=data, encoder=encoder.identity, transform=pictures.transform, seed=args.seed)
    shards = FeatureShards(args.work_dir / 'features', images, definition, args.shard_size)
    shards.encode(encoder.to(get_device()), pictures, args.batch_size, args.num_workers)
    return shards, definition


def write_results(args, pictures: PlainPictures, images: np.ndarray, features, mined: MinedPairs, definition) -> None:
    data = definition.pop('data')
    selection = {key: getattr(args, key) for key in ('max_per_anchor', 'max_partner_uses', 'mutual', 'seed')}
    definition['selection'] = dict(
        num_images=len(images), lower=mined.lower, upper=args.upper, similarity='cosine', **selection
    )
    definition['version'] = mm_sop.__version__
    manifest = PairManifest(images[mined.pairs.numpy()], mined.cosines.numpy(), data, definition)
    write_manifest(manifest, args.work_dir / f'{args.name}.json')
    write_pictures(args, pictures, images, features, mined)
    write_atomically(args.work_dir / 'report.json', json.dumps(mined.report, indent=1))
    write_atomically(args.work_dir / 'report.md', format_report(mined.report, Path(args.config).stem))


def write_pictures(args, pictures: PlainPictures, images: np.ndarray, features, mined: MinedPairs) -> None:
    nearest = mined.neighbors.nearest
    cosines = dict(random=mined.random_cosines.numpy(), nearest=nearest[nearest.isfinite()].numpy())
    chart = partial(similarity_chart, {f'{name} pairs': values for name, values in cosines.items()})
    figure = render(partial(chart, mined.lower, args.upper), LIGHT)
    write_atomically(args.work_dir / 'histogram.png', figure)
    groups = pair_groups(features, mined, args.upper)
    is_bgr = pictures_are_bgr(args)

    def picture(row: int) -> np.ndarray:
        return to_picture(pictures[int(images[row])]['inputs'], is_bgr)

    accepted = [name for name in groups if name not in ('duplicate', 'too low')]
    gallery = pair_gallery(picture, groups, accepted, seed=args.seed)
    background = Image.new('RGBA', gallery.image.size, 'white')
    write_atomically(args.work_dir / 'gallery.png', to_png(Image.alpha_composite(background, gallery.image)))


if __name__ == '__main__':
    main()
