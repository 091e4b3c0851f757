"""Copy detection in the layout of Copydays: originals and edited copies."""

from pathlib import Path

import cv2
import numpy as np

from mm_sop.demo.compose import Canvas, compose, crop_photo, draw_clutter, draw_position, to_uint8
from mm_sop.demo.sets import CompositeSet, balanced_choice, write_image

JPEG_QUALITIES = (3, 5, 8, 10, 15, 20, 30, 50, 75)
CROPPED_PERCENTAGES = (10, 15, 20, 30, 40, 50, 60, 70, 80)
FIRST_BLOCK = 2000
EDITS = ('crop', 'perspective', 'colors', 'gray', 'blur', 'noise', 'clutter')


class CopiesSet(CompositeSet):
    """``copies/``: ``original/``, ``strong/``, ``jpegqual/<quality>/`` and ``crops/<percentage removed>/``.

    As in Copydays the first four digits of a file name identify the original: ``200300.jpg`` is an original,
    ``strong/200301.jpg`` and ``200302.jpg`` are strong edits of it. The originals are scenes of test cut-outs on test
    photos, and many share a photo, so that a common background does not prove a copy.
    """

    name = 'copies'
    parts = {'original': 'copies'}
    setting_names = ('copies', 'copies_size', 'scene_style')

    def render(self, index: int, folder: Path) -> dict:
        rng, split, style = self.rng(index), self.splits['test'], self.settings.scene_style
        canvas, _ = compose(balanced_choice(split, *style.objects, rng), split, style, self.settings.copies_size, rng)
        original, block = canvas.to_uint8(), FIRST_BLOCK + index
        name = f'{block}00.jpg'
        write_image(folder / 'original' / name, original)
        for quality in JPEG_QUALITIES:
            write_image(folder / f'jpegqual/{quality}' / name, original, quality)
        for percent in CROPPED_PERCENTAGES:
            write_image(folder / f'crops/{percent}' / name, crop_center(original, percent / 100))
        strong = int(rng.integers(1, 3))
        for number in range(1, strong + 1):
            edited = original
            # Three of seven edits, each of which changes much of the image.
            for choice in sorted(rng.choice(len(EDITS), size=3, replace=False)):
                edited = self._edit(edited, EDITS[choice], rng)
            write_image(folder / f'strong/{block}{number:02d}.jpg', edited, int(rng.integers(20, 60)))
        return {'strong': strong}

    def _edit(self, image: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        match kind:
            case 'crop':
                return to_uint8(crop_photo(image, (width, height), (0.5, 0.75), rng))
            case 'perspective':
                corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
                moved = (corners + rng.uniform(-0.18, 0.18, (4, 2)) * (width, height)).astype(np.float32)
                matrix = cv2.getPerspectiveTransform(corners, moved)
                return cv2.warpPerspective(image, matrix, (width, height), borderValue=(128,) * 3)
            case 'colors':
                gain, offset, gamma = rng.uniform(0.6, 1.4, 3), rng.uniform(-0.15, 0.15, 3), rng.uniform(0.5, 2.0)
                return to_uint8((image / 255) ** gamma * gain + offset)
            case 'gray':
                return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            case 'blur':
                return cv2.GaussianBlur(image, (0, 0), rng.uniform(1.0, 2.5) * min(width, height) / 128)
            case 'noise':
                noisy = image + rng.normal(0, rng.uniform(10, 30), image.shape)
                return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
            case 'clutter':
                canvas = Canvas(image.astype(np.float32) / 255)
                for _ in range(rng.integers(1, 4)):
                    side = round(rng.uniform(0.3, 0.6) * min(width, height))
                    patch = draw_clutter(self.splits['test'], side, self.settings.scene_style, rng)
                    canvas.paint(patch, draw_position(patch, canvas.size, rng, overhang=0.3))
                return canvas.to_uint8()
        raise ValueError(f'unknown edit {kind!r}')

    def finish(self, records: list[dict], folder: Path) -> dict[str, int]:
        return dict(
            original=len(records),
            strong=sum(record['strong'] for record in records),
            jpegqual=len(records) * len(JPEG_QUALITIES),
            crops=len(records) * len(CROPPED_PERCENTAGES),
        )


def crop_center(image: np.ndarray, removed: float) -> np.ndarray:
    """Crop the center of an (H, W, 3) image so that a fraction of its area is removed."""
    height, width = image.shape[:2]
    h, w = (max(round(side * (1 - removed) ** 0.5), 1) for side in (height, width))
    top, left = (height - h) // 2, (width - w) // 2
    return image[top : top + h, left : left + w]
