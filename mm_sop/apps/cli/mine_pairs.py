"""Find semantic positive pairs for SePP with a frozen encoder: python tools/mine_pairs.py CONFIG CHECKPOINT.

CONFIG is that of the training run which is to use the pairs: it says which images are compared. CHECKPOINT holds the
encoder, which should be self-supervised and trained on the same data.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mm_sop.apps.cli.arguments import add_config_options, add_encoder_arguments, command_parser, prepare_libraries
from mm_sop.utils.failures import report_failures

if TYPE_CHECKING:
    import numpy as np
    from mmengine.config import Config

    from mm_sop.evaluation.features.store import FeatureShards
    from mm_sop.evaluation.retrieval.mining import PlainImages


def parse_args() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config of the training run')
    parser.add_argument('checkpoint', help='weights of the encoder')
    parser.add_argument('--data', metavar='DIR', help='folder of the training images, as for train.py')
    parser.add_argument('--work-dir', type=Path, help='results; default work_dirs/pairs/<name of the config>')
    parser.add_argument('--name', default='pairs', help='name of the manifest in the work directory')
    parser.add_argument('--seed', type=int, default=0, help='seed of the choice of images and of random pairs')
    add_config_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch'], default='none')
    encoder = parser.add_argument_group('encoder')
    sources = 'timm:NAME, torchvision:NAME, dinov2, ibot, timm, torchvision, mmpretrain or a config; default CONFIG'
    add_encoder_arguments(encoder, sources)
    encoder.add_argument('--shard-size', type=int, default=4096, help='images encoded between two checkpoints')
    group = parser.add_argument_group('selection')
    group.add_argument('--num-images', type=int, metavar='K', help='default all, or a tenth of more than 200,000')
    group.add_argument('--lower', type=float, help='lower bound of the cosine; default the suggested one')
    group.add_argument('--upper', type=float, default=0.99, help='upper bound (%(default)s)')
    group.add_argument('--max-per-anchor', type=_cap, default=1, metavar='N', help="partners to choose, or 'all'")
    group.add_argument('--max-partner-uses', type=_cap, default=5, metavar='N', help="times to be chosen, or 'all'")
    group.add_argument('--mutual', action='store_true', help='both must have chosen each other')
    group.add_argument('--budget', type=float, default=0.5, help='pairs per image when suggesting')
    group.add_argument('--num-random', type=int, default=1_000_000, help='random pairs for the calibration')
    group.add_argument('--block-size', type=int, default=2048, help='rows and columns compared at once')
    group.add_argument('--folder-labels', action='store_true', help='folders are classes, for the precision reported')
    return parser.parse_args()


def _cap(text: str) -> int | None:
    return None if text == 'all' else int(text)


def prepare_config(args: argparse.Namespace) -> 'Config':
    """Read and check the config, and start the communication of the processes."""
    from mm_sop.engine.distributed import connect_processes
    from mm_sop.engine.launch import set_data_root
    from mm_sop.engine.preflight import check_data
    from mm_sop.utils.config import load_config, merge_options

    config = load_config(args.config)
    merge_options(config, args.cfg_options or {})
    if args.data is not None:
        set_data_root(config, args.data)
    check_data(config)
    config.launcher = args.launcher
    connect_processes(config.launcher, config.get('env_cfg', {}).get('dist_cfg'))
    return config


def read_classes(args: argparse.Namespace, images: 'PlainImages', chosen: 'np.ndarray') -> 'np.ndarray | None':
    """Read the classes for the report, where they are known."""
    import numpy as np

    from mm_sop.datasets.semantic_pairs import image_info
    from mm_sop.evaluation.labeled_data import read_labels

    if not hasattr(images.dataset, 'get_data_info'):
        return None
    if not args.folder_labels:
        return read_labels(images.dataset, 'class', chosen)
    folders = [str(Path(image_info(images.dataset, index)['img_path']).parent) for index in chosen.tolist()]
    return np.unique(folders, return_inverse=True)[1]


def encode(
    args: argparse.Namespace, config: 'Config', images: 'PlainImages', chosen: 'np.ndarray'
) -> tuple['FeatureShards', dict]:
    """Encode the chosen images, and describe what the features depend on."""
    from mmengine.device import get_device

    from mm_sop.datasets.semantic_pairs import describe_data
    from mm_sop.encoders.encoder import build_encoder
    from mm_sop.evaluation.features.store import FeatureShards
    from mm_sop.utils.channel_order import loading_order

    order = loading_order(images.transform)
    encoder = build_encoder(config, args.checkpoint, args.encoder, args.network, args.prefix, order)
    definition = dict(
        data=describe_data(images.dataset), encoder=encoder.identity, transform=images.transform, seed=args.seed
    )
    shards = FeatureShards(args.work_dir / 'features', chosen, definition, args.shard_size)
    shards.encode(encoder.to(get_device()).encode, images, args.batch_size, args.num_workers)
    return shards, definition


def mine_pairs(args: argparse.Namespace, config: 'Config') -> None:
    """Encode, search and write manifest and report."""
    import torch
    from mmengine.dist import get_world_size, is_main_process

    from mm_sop.evaluation.retrieval.mining import (
        PlainImages,
        Selection,
        choose_images,
        make_manifest,
        mine,
        write_manifest,
    )
    from mm_sop.report.montage import to_image
    from mm_sop.report.pairs import write_pair_report
    from mm_sop.utils.channel_order import loading_order

    images = PlainImages(config, args.crop_size, args.resize_edge)
    chosen = choose_images(len(images), args.num_images, args.seed)
    shards, definition = encode(args, config, images, chosen)
    if not is_main_process():
        return
    if not torch.cuda.is_available():
        # The other processes are done.
        torch.set_num_threads(torch.get_num_threads() * get_world_size())
    features = shards.load()
    selection = Selection(**{name: getattr(args, name) for name in Selection.__dataclass_fields__})
    labels = read_classes(args, images, chosen)
    mined = mine(features, selection, labels, args.num_random, args.seed, args.block_size)
    manifest = make_manifest(mined, selection, chosen, definition)
    write_manifest(manifest, args.work_dir / f'{args.name}.json')
    is_bgr = loading_order(images.transform) == 'bgr'

    def load(row: int) -> 'np.ndarray':
        return to_image(images[int(chosen[row])]['inputs'], is_bgr)

    write_pair_report(args.work_dir, mined, features, load, Path(args.config).stem, args.seed)
    print((args.work_dir / 'report.md').read_text(errors='backslashreplace'))
    print(f'Manifest: {args.work_dir / args.name}.json. Look at {args.work_dir}/gallery.png before training with it.')


@report_failures('mine_pairs.py', ValueError, FileNotFoundError)
def main() -> None:
    args = parse_args()

    from mm_sop.encoders.checkpoint import trust_checkpoints
    from mm_sop.engine.processes import guard_run

    prepare_libraries()
    config = prepare_config(args)
    args.work_dir = args.work_dir or Path('work_dirs/pairs', Path(args.config).stem)
    with guard_run(args.work_dir, args.launcher), trust_checkpoints(args.trust):
        mine_pairs(args, config)


if __name__ == '__main__':
    main()
