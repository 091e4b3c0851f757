"""Draw what a trained detector finds: python tools/detect.py CHECKPOINT IMAGE...

The config is read from the checkpoint, where training has put it. A picture of each image and detections.json are
written into the folder --out. Pictures that cannot be read are skipped, and make the exit status 1.
"""

import argparse
import itertools
import json
import sys
from collections import Counter
from pathlib import Path

from mmengine.device import get_device

from mm_sop.datasets.files import printable
from mm_sop.datasets.transforms.loading import LoadPicture, UnreadableImageError
from mm_sop.engine.atomic import write_atomically
from mm_sop.engine.failures import report_failures
from mm_sop.engine.launch import load_config
from mm_sop.engine.stored_config import stored_config
from mm_sop.engine.weights import WeightsError, find_state_dict, read_checkpoint
from mm_sop.evaluation.detection import detect, load_detector, summarise
from mm_sop.visualization.detections import draw_detections
from mm_sop.visualization.montage import to_png


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='weights of the detector')
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE', help='pictures')
    parser.add_argument('--config', help='config of the training run; default that in the checkpoint')
    parser.add_argument('--out', type=Path, default=Path('detections'), help='folder of the results (%(default)s)')
    parser.add_argument('--min-score', type=float, default=0.3, help='least score of an object (%(default)s)')
    parser.add_argument('--trust', action='store_true', help='let code in CHECKPOINT run')
    return parser.parse_args()


def run(args: argparse.Namespace) -> list[Path]:
    """Returns the pictures that cannot be read."""
    content = read_checkpoint(args.checkpoint, args.trust)
    if args.config:
        config = load_config(args.config)
    else:
        config = stored_config(content, args.checkpoint, ('model', 'data_preprocessor', 'test_dataloader'), args.trust)
    model = load_detector(config, args.checkpoint, get_device(), find_state_dict(content, args.checkpoint))
    detections, load_picture = {}, LoadPicture()
    for path, name in zip(args.images, distinct_names(args.images), strict=True):
        try:
            picture = load_picture(dict(img_path=path))['img']
        except UnreadableImageError as error:
            print(f'detect.py: skipped {error}', file=sys.stderr)
            continue
        objects = detections[str(path)] = detect(model, picture, args.min_score)
        drawing = draw_detections(picture[..., ::-1].copy(), objects, model.dataset_meta['classes'])
        write_atomically(args.out / f'{name}.png', to_png(drawing))
    plain = {path: [_without_mask(item) for item in objects] for path, objects in detections.items()}
    write_atomically(args.out / 'detections.json', json.dumps(plain, indent=1))
    print(f'{summarise(detections)}\nWritten to {args.out}')
    return [path for path in args.images if str(path) not in detections]


def distinct_names(paths: list[Path]) -> list[str]:
    """Stems of the files, numbered where several are equal, with no number that makes another file's name."""
    stems, names = Counter(path.stem for path in paths), []
    for path in paths:
        numbered = (f'{path.stem}_{number}' for number in itertools.count(1))
        free = (name for name in numbered if name not in stems and name not in names)
        names.append(path.stem if stems[path.stem] == 1 else next(free))
    return names


def _without_mask(item: dict) -> dict:
    return {key: value for key, value in item.items() if key != 'mask'}


@report_failures('detect.py', WeightsError, FileNotFoundError)
def main() -> None:
    skipped = run(parse_args())
    if skipped:
        sys.exit(f'detect.py: {len(skipped)} of the pictures cannot be read: {printable(", ".join(map(str, skipped)))}')


if __name__ == '__main__':
    main()
