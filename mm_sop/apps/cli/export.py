"""Write a pretrained encoder for another library: python tools/export.py CHECKPOINT --to timm.

Checkpoints of this project say themselves what network they hold. Those of other libraries are read with --from and can
be written for any target in the same way, --to mmpretrain for a starting point of training.
"""

import argparse
from pathlib import Path

from mm_sop.apps.cli.arguments import add_network, add_trust, command_parser, prepare_libraries
from mm_sop.utils.failures import report_failures

# Those of `mm_sop.export.TARGETS`, which imports torch.
TARGETS = ('timm', 'torchvision', 'huggingface', 'mmpretrain', 'mmdet', 'safetensors', 'onnx', 'torchscript')


def parse_args() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('checkpoint', help='file, folder of an export, https:// address or hf:OWNER/NAME')
    parser.add_argument('--to', nargs='+', required=True, choices=TARGETS, help='targets')
    add_network(parser, '--which')
    sources = 'timm, dinov2, ibot, torchvision, mmpretrain; or timm:NAME, torchvision:NAME for programs'
    parser.add_argument('--from', dest='source', metavar='SOURCE', help=sources)
    parser.add_argument('--config', help='config of the run, if the checkpoint does not hold it')
    parser.add_argument('--out', type=Path, help='results, a folder for each target; default export/ beside CHECKPOINT')
    parser.add_argument(
        '--data', default='data/composites/classes/test', help='images on which features are compared (%(default)s)'
    )
    parser.add_argument('--num-images', type=int, default=8, help='how many of them (%(default)s)')
    parser.add_argument('--image-size', type=int, help='side of the images; default that of pretraining, else 224')
    parser.add_argument('--num-heads', type=int, help='attention heads, with --from; default one for 64 channels')
    parser.add_argument('--license', help='license of the weights, for the card; default apache-2.0, with --from other')
    add_trust(parser)
    return parser.parse_args()


@report_failures('export.py', OSError, ValueError)
def main() -> None:
    args = parse_args()

    import mm_sop
    from mm_sop.export.export import check, export, sample_images

    prepare_libraries()
    images = sample_images(args.data, args.num_images)
    encoder = mm_sop.load(
        args.checkpoint, args.which, args.config, args.source, args.image_size, args.num_heads, args.trust
    )
    # An address has no folder.
    run = Path(args.checkpoint).parent if Path(args.checkpoint).exists() else None
    license = args.license or ('other' if args.source else 'apache-2.0')
    folders = {target: (args.out or (run or Path()) / 'export') / target for target in args.to}
    # All targets are checked before the first is written.
    for target, folder in folders.items():
        check(encoder, target, folder)
    for target, folder in folders.items():
        differences = export(encoder, target, folder, images, run, license)
        found = ', '.join(f'{name} {value:.1e}' for name, value in differences.items())
        print(f'{target}: {folder}, largest differences on {len(images)} images: {found}')


if __name__ == '__main__':
    main()
