"""Contact sheets of generated sets, drawn from their files."""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from mm_sop.utils.files import open_atomically

GAP = 2
LABEL_HEIGHT = 12
WEAK_EDITS = ('jpegqual/3', 'jpegqual/15', 'crops/20', 'crops/50', 'crops/80')
COLORS = ((255, 64, 64), (64, 255, 64), (80, 140, 255), (255, 220, 0))

Rows = dict[str, list[np.ndarray]]


def write_contact_sheets(out: str | Path, names: list[str]) -> list[Path]:
    """Write one contact sheet per set below ``out`` to ``out/contact_sheets/NAME.png``; return the files."""
    targets = [Path(out, 'contact_sheets', f'{name}.png') for name in names]
    for name, target in zip(names, targets, strict=True):
        with open_atomically(target) as file:
            draw_grid(SHEETS[name](Path(out, name))).save(file, format='PNG')
    return targets


def draw_grid(rows: Rows) -> Image.Image:
    """Draw titled rows of (H, W, 3) uint8 images."""
    heights = [max(image.shape[0] for image in images) for images in rows.values()]
    width = max(sum(image.shape[1] + GAP for image in images) for images in rows.values())
    sheet = Image.new('RGB', (width, sum(heights) + len(rows) * (LABEL_HEIGHT + GAP)), (32, 32, 32))
    draw = ImageDraw.Draw(sheet)
    y = 0
    for (title, images), height in zip(rows.items(), heights, strict=True):
        draw.text((2, y), title, fill=(255, 255, 255))
        y, x = y + LABEL_HEIGHT, 0
        for image in images:
            sheet.paste(Image.fromarray(image), (x, y))
            x += image.shape[1] + GAP
        y += height + GAP
    return sheet


def _read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert('RGB'))


def _spread(items: list, count: int) -> list:
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]


def pretrain(folder: Path) -> Rows:
    files = _spread(sorted(path for path in folder.rglob('*') if path.suffix in ('.png', '.jpg')), 96)
    return {f'pretrain {i // 16 + 1}': [_read(path) for path in files[i : i + 16]] for i in range(0, len(files), 16)}


def classes(folder: Path) -> Rows:
    rows = {}
    for part in ('bank', 'seen', 'test'):
        content = json.loads((folder / f'{part}.json').read_text())
        for index, name in enumerate(content['classes']):
            files = [entry['path'] for entry in content['files'] if entry['label'] == index]
            rows[f'{part}: {name}'] = [_read(folder / path) for path in _spread(files, 16)]
    return rows


def outline(image: np.ndarray, masks: list[np.ndarray], boxes: list[list[float]] | None = None) -> np.ndarray:
    """Enlarge an image three times and draw the outlines of masks and, if given, (x, y, w, h) boxes."""
    large = cv2.resize(image, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
    for i, mask in enumerate(masks):
        enlarged = cv2.resize(mask.astype(np.uint8), None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(large, contours, -1, COLORS[i % len(COLORS)], 1)
        if boxes:
            x, y, w, h = (round(3 * v) for v in boxes[i])
            cv2.rectangle(large, (x, y), (x + w - 1, y + h - 1), COLORS[i % len(COLORS)], 1)
    return large


def scenes(folder: Path) -> Rows:
    rows: Rows = {}
    for part in ('train', 'val'):
        coco = json.loads((folder / f'annotations/instances_{part}.json').read_text())
        for number, record in enumerate(_spread(coco['images'], 6)):
            found = [entry for entry in coco['annotations'] if entry['image_id'] == record['id']]
            masks = [coco_mask.decode(entry['segmentation']) for entry in found]
            image = outline(_read(folder / part / record['file_name']), masks, [entry['bbox'] for entry in found])
            rows.setdefault(f'{part} {number // 3 + 1}', []).append(image)
    return rows


def segmentation(folder: Path) -> Rows:
    palette = np.random.default_rng(0).integers(64, 256, (256, 3)).astype(np.uint8)
    palette[0] = 0
    rows = {}
    for part in ('training', 'validation'):
        masks = _spread(sorted((folder / 'annotations' / part).iterdir()), 6)
        rows[part] = [_read(folder / 'images' / part / f'{path.stem}.jpg') for path in masks]
        rows[f'{part}: classes'] = [palette[np.asarray(Image.open(path))] for path in masks]
    return rows


def retrieval(folder: Path) -> Rows:
    truth = json.loads((folder / 'gnd_composites.json').read_text())
    rows = {}
    for name, graded in _spread(list(zip(truth['qimlist'], truth['gnd'], strict=True)), 8):
        query = _read(folder / f'jpg/{name}.jpg').copy()
        x1, y1, x2, y2 = (round(v) for v in graded['bbx'])
        cv2.rectangle(query, (x1, y1), (x2 - 1, y2 - 1), COLORS[3], 1)
        chosen = [*graded['easy'][:3], *graded['hard'][:3], *graded['junk'][:2]]
        found = [_read(folder / f'jpg/{truth["imlist"][i]}.jpg') for i in chosen]
        rows[f'{name}: query, 3 easy, 3 hard, 2 junk'] = [query, *found]
    return rows


def copies(folder: Path) -> Rows:
    rows = {}
    for path in _spread(sorted((folder / 'original').iterdir()), 8):
        strong = sorted((folder / 'strong').glob(f'{path.stem[:4]}*'))
        shown = [path, *(folder / kind / path.name for kind in WEAK_EDITS), *strong]
        rows[f'{path.stem}: original, {", ".join(WEAK_EDITS)}, strong'] = [_read(file) for file in shown]
    return rows


def video(folder: Path) -> Rows:
    rows = {}
    for sequence in _spread(sorted((folder / 'Annotations/480p').iterdir()), 8):
        images = []
        for path in _spread(sorted(sequence.iterdir()), 4):
            labels = np.asarray(Image.open(path))
            frame = _read(folder / f'JPEGImages/480p/{sequence.name}/{path.stem}.jpg')
            images.append(outline(frame, [labels == k for k in range(1, labels.max() + 1)])[::2, ::2])
        rows[sequence.name] = images
    return rows


def backgrounds(folder: Path) -> Rows:
    files = _spread(json.loads((folder / 'original.json').read_text())['files'], 16)
    variants = ('original', 'mixed_same', 'mixed_rand', 'only_fg', 'no_fg')
    return {v: [_read(folder / v / f['path'].removeprefix('original/')) for f in files] for v in variants}


SHEETS = {
    sheet.__name__: sheet for sheet in (pretrain, classes, scenes, segmentation, retrieval, copies, video, backgrounds)
}
