"""Copy detection in the layout of Copydays: originals and edited copies."""

from pathlib import Path

import cv2
import numpy as np

from mm_sop.demo.compose import Canvas, compose, crop_photo, draw_clutter, draw_position
from mm_sop.demo.sets import CompositeSet, balanced_choice, write_image

JPEG_QUALITIES = (3, 5, 8, 10, 15, 20, 30, 50, 75)
CROPPED_PERCENTAGES = (10, 15, 20, 30, 40, 50, 60, 70, 80)
FIRST_BLOCK = 2000


class CopiesSet(CompositeSet):
    """``copies/``: ``original/``, ``strong/``, ``jpegqual/<quality>/`` and ``crops/<percentage removed>/``.

    As in Copydays the first four digits of a file name identify the original: ``200300.jpg`` is an original,
    ``strong/200301.jpg`` and ``200302.jpg`` are strong edits of it. The originals are scenes of test cut-outs on test
    photos, and many share a photo, so that a common background does not prove a copy.
    """

    name = 'copies'
    setting_names = ('copies', 'copies_size', 'scene_style')

    def __len__(self) -> int:
        return self.settings.copies

    def render(self, index: int, folder: Path) -> dict:
        rng, split, style = self.rng(index), self.splits['test'], self.settings.scene_style
        cutouts = balanced_choice(split, rng.integers(style.objects[0], style.objects[1] + 1), rng)
        canvas, _ = compose(cutouts, split, style, self.settings.copies_size, rng)
        original, block = canvas.to_uint8(), FIRST_BLOCK + index
        name = f'{block}00.jpg'
        write_image(folder / 'original' / name, original)
        for quality in JPEG_QUALITIES:
            write_image(folder / f'jpegqual/{quality}' / name, original, quality)
        for percent in CROPPED_PERCENTAGES:
            write_image(folder / f'crops/{percent}' / name, crop_center(original, percent / 100))
        strong = int(rng.integers(1, 3))
        for number in range(1, strong + 1):
            edited = self._edit_strongly(original, rng)
            write_image(folder / f'strong/{block}{number:02d}.jpg', edited, int(rng.integers(20, 60)))
        return {'strong': strong}

    def _edit_strongly(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Apply three of seven edits, each of which changes much of the image."""
        edits = (_crop_strongly, _change_perspective, _recolor, _to_gray, _blur, _add_noise, self._cover)
        for choice in sorted(rng.choice(len(edits), size=3, replace=False)):
            image = edits[choice](image, rng)
        return image

    def _cover(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Paste clutter over a part of the image."""
        canvas = Canvas(image.astype(np.float32) / 255)
        for _ in range(rng.integers(1, 4)):
            side = round(rng.uniform(0.3, 0.6) * min(canvas.size))
            patch = draw_clutter(self.splits['test'], side, self.settings.scene_style, rng)
            canvas.paint(patch, draw_position(patch, canvas.size, rng, overhang=0.3))
        return canvas.to_uint8()

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


def _crop_strongly(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    cropped = crop_photo(image, (width, height), (0.5, 0.75), rng)
    return np.rint(cropped * 255).astype(np.uint8)


def _change_perspective(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    moved = (corners + rng.uniform(-0.18, 0.18, (4, 2)) * (width, height)).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(corners, moved)
    return cv2.warpPerspective(image, matrix, (width, height), borderMode=cv2.BORDER_CONSTANT, borderValue=(128,) * 3)


def _recolor(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    gain, offset, gamma = rng.uniform(0.6, 1.4, 3), rng.uniform(-0.15, 0.15, 3), rng.uniform(0.5, 2.0)
    changed = np.clip((image / 255) ** gamma * gain + offset, 0, 1)
    return np.rint(changed * 255).astype(np.uint8)


def _to_gray(image: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def _blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(1.0, 2.5) * min(image.shape[:2]) / 128)


def _add_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noisy = image + rng.normal(0, rng.uniform(10, 30), image.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
