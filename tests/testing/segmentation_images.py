"""A small segmentation dataset, laid out like ADE20K."""

import numpy as np
from PIL import Image

from testing.sample_images import smooth_image


def write_segmentation_set(folder, count=4, size=(48, 32), labels=3):
    """Write images with a rectangle of a color of its own for each label but 0.

    Args:
        folder (Path): Where ``images`` and ``annotations`` are created, each with ``training`` and ``validation``.
        count (int): Images in each part.
        size (tuple): Width and height.
        labels (int): Values 0 ... ``labels`` - 1 are used, at most 4.
    """
    for part in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (folder / kind / part).mkdir(parents=True)
        for index in range(count):
            rng = np.random.default_rng((index, part == 'training'))
            image, label_map = np.asarray(smooth_image(size, index)) // 2, np.zeros(size[::-1], np.uint8)
            for label in range(1, labels):
                top, left = rng.integers(0, size[1] // 2), rng.integers(0, size[0] // 2)
                area = slice(top, top + size[1] // 3), slice(left, left + size[0] // 3)
                image[area], label_map[area] = 255 * np.eye(3)[label - 1], label
            Image.fromarray(image).save(folder / f'images/{part}/{index}.jpg', quality=95)
            Image.fromarray(label_map).save(folder / f'annotations/{part}/{index}.png')
