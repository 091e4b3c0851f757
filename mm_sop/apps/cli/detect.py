"""Draw what a trained detector finds: python tools/detect.py CHECKPOINT IMAGE...

The config is read from the checkpoint, where training has put it. A drawing of each image and detections.json are
written into the folder --out. Images that cannot be read are skipped, and make the exit status 1.
"""

import argparse
import itertools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, cast

from mm_sop.apps.cli.arguments import add_trust, command_parser
from mm_sop.utils.failures import report_failures


def parse_args() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('checkpoint', help='weights of the detector')
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE', help='images')
    parser.add_argument('--config', help='config of the training run; default that in the checkpoint')
    parser.add_argument('--out', type=Path, default=Path('detections'), help='folder of the results (%(default)s)')
    parser.add_argument('--min-score', type=float, default=0.3, help='least score of an object (%(default)s)')
    add_trust(parser)
    return parser.parse_args()


def detect_all(args: argparse.Namespace) -> list[Path]:
    """Draw the detections in all images, and return the images that cannot be read."""
    from mmengine.device import get_device

    from mm_sop import compat
    from mm_sop.datasets.transforms.loading import LoadImage, UnreadableImageError
    from mm_sop.encoders.checkpoint import read_checkpoint
    from mm_sop.encoders.safe_config import stored_config
    from mm_sop.engine.detection import detect, load_detector, summarize
    from mm_sop.report.montage import to_png
    from mm_sop.report.predictions import draw_detections
    from mm_sop.utils.config import load_config
    from mm_sop.utils.files import write_atomically

    compat.apply()
    checkpoint = read_checkpoint(args.checkpoint, args.trust)
    if args.config:
        config = load_config(args.config)
    else:
        sections = ('model', 'data_preprocessor', 'test_dataloader')
        config = stored_config(checkpoint.content, args.checkpoint, sections, args.trust)
    model = load_detector(config, args.checkpoint, get_device(), checkpoint.state_dict())
    detections, load_image = {}, LoadImage()
    for path, name in zip(args.images, distinct_names(args.images), strict=True):
        try:
            image = load_image(dict(img_path=path))['img']
        except UnreadableImageError as error:
            print(f'detect.py: skipped {error}', file=sys.stderr)
            continue
        objects = detections[str(path)] = detect(model, image, args.min_score)
        drawing = draw_detections(image[..., ::-1].copy(), objects, cast('Any', model).dataset_meta['classes'])
        write_atomically(args.out / f'{name}.png', to_png(drawing))
    plain = {
        path: [{key: value for key, value in item.items() if key != 'mask'} for item in objects]
        for path, objects in detections.items()
    }
    write_atomically(args.out / 'detections.json', json.dumps(plain, indent=1))
    print(f'{summarize(detections)}\nWritten to {args.out}')
    return [path for path in args.images if str(path) not in detections]


def distinct_names(paths: list[Path]) -> list[str]:
    """Return the stems of the files, numbered where several are equal, so that no two names are."""
    stems, names = Counter(path.stem for path in paths), []
    for path in paths:
        numbered = (f'{path.stem}_{number}' for number in itertools.count(1))
        free = (name for name in numbered if name not in stems and name not in names)
        names.append(path.stem if stems[path.stem] == 1 else next(free))
    return names


@report_failures('detect.py', FileNotFoundError)
def main() -> None:
    skipped = detect_all(parse_args())
    if skipped:
        from mm_sop.utils.files import printable

        sys.exit(f'detect.py: {len(skipped)} of the images cannot be read: {printable(", ".join(map(str, skipped)))}')


if __name__ == '__main__':
    main()
