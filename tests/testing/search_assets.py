"""Tiny sets in the formats of Oxford, Copydays and DAVIS, and an encoder of colors that solves them."""

import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from mm_sop.datasets.labeled.davis import encode_mask
from mm_sop.encoders.encoder import Encoder, EncoderSpecification

COLORS = ((220, 30, 40), (30, 200, 60), (40, 60, 210), (230, 210, 40), (200, 60, 220), (40, 210, 210))


def color_encoder(cell=8):
    """An encoder whose local map holds the mean colors of square cells."""
    origin = dict(checkpoint='colors', cell=cell)
    return Encoder(nn.AvgPool2d(cell), EncoderSpecification(None, (128.0,) * 3, (64.0,) * 3, origin=origin))


def write_image(path, color=COLORS[0], size=(40, 32), noise=20, seed=0):
    """A noisy image of one color."""
    pixels = np.random.default_rng(seed).normal(color, noise, (*size[::-1], 3))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
        path, **(dict(quality=95) if path.suffix == '.jpg' else {})
    )


def write_oxford(folder):
    """Three queries with two easy, one hard and one junk image each, in the format of revisited Oxford."""
    imlist, truth = [], []
    for query, color in enumerate(COLORS[:3]):
        write_image(folder / f'jpg/query_{query}.jpg', color, seed=query)
        entry = dict(bbx=[4.0, 4.0, 36.0, 28.0], easy=[], hard=[], junk=[])
        for grade in ('easy', 'easy', 'hard', 'junk'):
            entry[grade].append(len(imlist))
            imlist.append(f'image_{len(imlist):02d}')
            size = (48, 36) if grade == 'hard' else (40, 32)
            write_image(folder / f'jpg/{imlist[-1]}.jpg', color, size, 25, 100 + len(imlist))
        truth.append(entry)
    file_list = dict(imlist=imlist, qimlist=[f'query_{query}' for query in range(3)], gnd=truth)
    (folder / 'gnd_tiny.pkl').write_bytes(pickle.dumps(file_list, protocol=2))


def write_copydays(folder):
    """Four originals with strong copies, two JPEG qualities and one crop."""
    for number, color in enumerate(COLORS[:4]):
        name = f'20{number:02d}'
        for path in (f'original/{name}00', f'strong/{name}01', f'jpegqual/3/{name}00', f'crops/50/{name}00'):
            write_image(folder / f'{path}.jpg', color, seed=number)
    write_image(folder / 'strong/200102.jpg', COLORS[1], (24, 24), 40, 9)
    write_image(folder / 'jpegqual/75/200000.jpg', COLORS[0], seed=8)


def write_davis(folder, names=('one', 'two'), frames=6):
    """Sequences of two squares that move by four pixels in every frame, in the format of DAVIS 2017."""
    for number, name in enumerate(names):
        images, masks = (folder / kind / '480p' / name for kind in ('JPEGImages', 'Annotations'))
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for frame in range(frames):
            mask = np.zeros((48, 80), np.uint8)
            mask[8:24, 8 + 4 * frame : 24 + 4 * frame] = 1
            mask[28:44, 48 - 4 * frame : 64 - 4 * frame] = 2
            colors = np.array([(120, 120, 120), COLORS[number], COLORS[number + 2]], np.uint8)
            Image.fromarray(colors[mask]).save(images / f'{frame:05d}.jpg', quality=95)
            (masks / f'{frame:05d}.png').write_bytes(encode_mask(mask))
    (folder / 'ImageSets/2017').mkdir(parents=True)
    (folder / 'ImageSets/2017/val.txt').write_text('\n'.join(names) + '\n')
