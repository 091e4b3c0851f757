"""Cut-outs and photos drawn at random, for tests of the photo composites."""

import numpy as np
from PIL import Image

from mm_sop.demo import build_assets, find_own_sources


def noisy_texture(width, height, seed):
    """A random smooth pattern with the noise of a photo, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(30, 226, (6, 6, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def noisy_cutout(width, height, seed):
    """An ellipse with a photo-like texture, RGBA."""
    y, x = np.mgrid[:height, :width]
    inside = ((2 * x + 1) / width - 1) ** 2 + ((2 * y + 1) / height - 1) ** 2 <= 1
    return Image.fromarray(np.dstack([noisy_texture(width, height, seed), inside * np.uint8(255)]))


def write_sources(folder, classes=('boats', 'cups', 'keys'), per_class=4, photos=5):
    """Folders of cut-outs with alpha and of photos, all different."""
    for number, name in enumerate((*classes, 'distractor')):
        (folder / 'cutouts' / name).mkdir(parents=True)
        for index in range(per_class):
            seed = 100 * number + index
            image = noisy_cutout(60 + 10 * index, 60 + 8 * number, seed)
            image.save(folder / f'cutouts/{name}/{name[:-1]}-{index}.png')
    (folder / 'photos').mkdir()
    for index in range(photos):
        Image.fromarray(noisy_texture(360, 300, 900 + index)).save(folder / f'photos/view-{index}.jpg')


def make_assets(folder):
    """An asset folder of 3 classes of 4 cut-outs, 4 distractors and 5 photos."""
    write_sources(folder)
    build_assets(find_own_sources(folder / 'cutouts', folder / 'photos', 'CC0-1.0'), folder / 'assets')
    return folder / 'assets'
