"""Short videos with object masks in the DAVIS 2017 layout."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mm_sop.demo.assets import Cutout
from mm_sop.demo.compose import Canvas, warp_cutout
from mm_sop.demo.sets import CompositeSet, balanced_choice, write_image

PALETTE = (0, 0, 0, 128, 0, 0, 0, 128, 0)
RESOLUTION = '480p'
WINDOW = (0.55, 0.8)
FIRST_FRAME_TRIES = 20


@dataclass(frozen=True)
class Track:
    """Motion of one object; lengths are relative to the shorter frame side."""

    cutout: Cutout
    start: np.ndarray  # Center (x, y) in the first frame, relative to the frame's width and height
    velocity: np.ndarray  # Displacement of the center over the whole sequence, in the same unit
    scale: tuple[float, float]  # Longer side in the first and in the last frame
    angle: tuple[float, float]  # Degrees in the first and in the last frame
    sway: tuple[float, float, float]  # Amplitude, number of periods and phase of a vertical oscillation
    mirrored: bool  # Whether the object is mirrored
    feather: float  # Sigma of the softened edge in pixels

    def place(self, time: float, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """Return the patch and its upper left corner at a time in [0, 1]."""
        side = round(np.interp(time, (0, 1), self.scale) * min(size))
        patch = warp_cutout(self.cutout.image, side, np.interp(time, (0, 1), self.angle), self.mirrored, self.feather)
        amplitude, periods, phase = self.sway
        x, y = (self.start + time * self.velocity) * size
        y += amplitude * min(size) * (np.sin(2 * np.pi * periods * time + phase) - np.sin(phase))
        return patch, (round(x - patch.shape[1] / 2), round(y - patch.shape[0] / 2))


class VideoSet(CompositeSet):
    """``video/``: ``{JPEGImages,Annotations}/480p/<sequence>/*.{jpg,png}`` and ``ImageSets/2017/{train,val}.txt``.

    One or two cut-outs move, rotate and change their size over a panning photo; the masks are palette images with
    the object numbers. Training sequences use train cut-outs and photos, validation sequences test ones. The folder is
    named 480p because readers of DAVIS expect it; the frames have the size of the settings.
    """

    name = 'video'
    parts = {'train': 'video_train', 'val': 'video_val'}
    sides = {'train': 'train', 'val': 'test'}
    setting_names = ('video_size', 'video_train', 'video_val', 'video_frames')

    def render(self, index: int, folder: Path) -> dict:
        part, _ = self.locate(index)
        rng, split = self.rng(index), self.splits[self.sides[part]]
        photo = split.photos[rng.integers(len(split.photos))]
        backgrounds = pan(photo.image, self.settings.video_size, self.settings.video_frames, rng)
        tracks = self._draw_tracks(balanced_choice(split, 1, 2, rng), rng)
        name = f'composite-{index:03d}'
        masks = folder / f'Annotations/{RESOLUTION}/{name}'
        masks.mkdir(parents=True)
        for number, background in enumerate(backgrounds):
            canvas = self._compose_frame(background, tracks, number)
            write_image(folder / f'JPEGImages/{RESOLUTION}/{name}/{number:05d}.jpg', canvas.to_uint8())
            mask = Image.fromarray(canvas.labels.astype(np.uint8), mode='P')
            mask.putpalette(PALETTE)
            mask.save(masks / f'{number:05d}.png')
        return {'name': name, 'objects': len(tracks)}

    def _draw_tracks(self, cutouts: list[Cutout], rng: np.random.Generator) -> list[Track]:
        """Draw motions with at least half of every object visible in the first frame."""
        width, height = self.settings.video_size
        for _ in range(FIRST_FRAME_TRIES):
            tracks = [draw_track(cutout, rng) for cutout in cutouts]
            first = self._compose_frame(np.zeros((height, width, 3), np.float32), tracks, 0)
            if all(first.areas[i] and first.visible(i) >= 0.5 for i in range(len(tracks))):
                return tracks
        return tracks[-1:]

    def _compose_frame(self, background: np.ndarray, tracks: list[Track], number: int) -> Canvas:
        canvas = Canvas(background)
        for track in tracks:
            patch, position = track.place(number / max(self.settings.video_frames - 1, 1), canvas.size)
            canvas.paint(patch, position, is_object=True)
        return canvas

    def finish(self, records: list[dict], folder: Path) -> dict[str, int]:
        counts, lists = {}, folder / 'ImageSets/2017'
        lists.mkdir(parents=True)
        for part, listed in self.by_part(records).items():
            (lists / f'{part}.txt').write_text(''.join(f'{record["name"]}\n' for record in listed))
            counts.update({part: len(listed), f'{part}_objects': sum(record['objects'] for record in listed)})
        return dict(counts, frames=len(records) * self.settings.video_frames)


def draw_track(cutout: Cutout, rng: np.random.Generator) -> Track:
    """Draw a random smooth motion that starts well inside the frame and stays mostly inside."""
    start, end = rng.uniform(0.25, 0.75, 2), rng.uniform(0.2, 0.8, 2)
    scale = rng.uniform(0.35, 0.7)
    angle = rng.uniform(-15, 15)
    return Track(
        cutout=cutout,
        start=start,
        velocity=end - start,
        scale=(scale, float(np.clip(scale * rng.uniform(0.7, 1.4), 0.25, 0.8))),
        angle=(angle, angle + rng.uniform(-25, 25)),
        sway=(rng.uniform(0, 0.08), rng.uniform(0.5, 2), rng.uniform(0, 2 * np.pi)),
        mirrored=bool(cutout.mirror and rng.random() < 0.5),
        feather=rng.uniform(0.35, 0.6),
    )


def pan(photo: np.ndarray, size: tuple[int, int], frames: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Pan over an (H, W, 3) uint8 photo at constant speed; frames are (height, width, 3) float32 in [0, 1]."""
    height, width = photo.shape[:2]
    scale = rng.uniform(*WINDOW) * min(width / size[0], height / size[1])
    room = np.array([width - scale * size[0], height - scale * size[1]])
    start, end = rng.random(2) * room, rng.random(2) * room
    # Shrinking the photo first prevents aliasing by the sub-pixel shifts below.
    shrunk = cv2.resize(photo, (round(width / scale), round(height / scale)), interpolation=cv2.INTER_AREA)
    shrunk = shrunk.astype(np.float32) / 255
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    shifted = []
    for time in np.linspace(0, 1, frames):
        x, y = (start + (end - start) * time) / scale
        matrix = np.array([[1, 0, x], [0, 1, y]])
        shifted.append(cv2.warpAffine(shrunk, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE))
    return shifted
