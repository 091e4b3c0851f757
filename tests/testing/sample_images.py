"""Writes small smooth images for tests, so that none has to be kept in the repository."""

from pathlib import Path

import numpy as np
from PIL import Image


def smooth_image(size=(64, 48), seed=0):
    """Draw a random smooth color image.

    Args:
        size (tuple): Width and height in pixels.
        seed (int | tuple): Seed of the image.

    Returns:
        PIL.Image.Image: RGB image of that size.
    """
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def write_images(folder, count, size=(64, 48), seed=0, nested=True):
    """Write images, by turns JPEG and PNG.

    Args:
        folder (str | Path): Where to write; created if missing.
        count (int): Number of images.
        size (tuple): Width and height in pixels.
        seed (int): Seed; image ``i`` is the same for every ``count``.
        nested (bool): Spread them over the subfolders ``a`` and ``b/c`` instead of writing into ``folder``.

    Returns:
        list[Path]: The files in the order of writing.
    """
    folders = [Path(folder, 'a'), Path(folder, 'b', 'c')] if nested else [Path(folder)]
    for path in folders:
        path.mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(count):
        path = folders[index % len(folders)] / f'{index:06d}{(".jpg", ".png")[index // len(folders) % 2]}'
        smooth_image(size, (seed, index)).save(path)
        files.append(path)
    return files


def write_splits(folder, count):
    """Write ``bank`` and ``test`` with the classes ``a`` and ``b`` of so many images, and return the folder."""
    for seed, name in enumerate(('bank/a', 'bank/b', 'test/a', 'test/b')):
        write_images(folder / name, count, seed=seed, nested=False)
    return folder
