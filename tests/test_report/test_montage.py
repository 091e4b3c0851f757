import io

import numpy as np
import pytest
import torch
from PIL import Image

from mm_sop.report.montage import RIGHT, Tile, montage, to_image, to_png

RED, BLUE = (np.full((8, 8, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))


def center(image, column, row=0, side=20, caption=True):
    """Color in the middle of a tile, from the documented layout: frames 6, gaps 8, first gap 24."""
    left = column * (side + 12 + 8) + (16 if column else 0)
    top = row * (side + 12 + (26 if caption else 0) + 8)
    return image.getpixel((left + 6 + side // 2, top + 6 + side // 2))


def test_tiles_are_where_they_belong():
    image = montage([[Tile(RED), Tile(BLUE)], [Tile(BLUE), Tile(RED)]], side=20)
    assert image.mode == 'RGBA' and image.size == (2 * 32 + 8 + 16, 2 * 32 + 8)
    assert center(image, 0, 0, caption=False) == center(image, 1, 1, caption=False) == (255, 0, 0, 255)
    assert center(image, 1, 0, caption=False) == center(image, 0, 1, caption=False) == (0, 0, 255, 255)
    assert image.getpixel((0, 0))[3] == 0  # no frame


def test_frame_and_caption():
    image = montage([[Tile(RED, 'bird', RIGHT)]], side=60)
    assert image.getpixel((36, 2)) == tuple(bytes.fromhex(RIGHT[1:])) + (255,)
    caption = np.asarray(image)[72:]
    assert caption[..., 3].any() and not np.asarray(montage([[Tile(RED)]], side=60))[72:].size


def test_long_captions_stay_within_their_tile():
    image = np.asarray(montage([[Tile(RED), Tile(RED, 'a very long name of a class'), Tile(RED)]], side=60))
    written = image[72:, :, 3].any(0).nonzero()[0]
    left = 72 + 8 + 16 + 6
    assert left - 1 <= written.min() and written.max() <= left + 61


def test_long_rows_continue_below_the_second_column():
    image = montage([[Tile(RED)] + [Tile(BLUE)] * 4], side=20, columns=3)
    colors = [[center(image, column, row, caption=False) for column in range(3)] for row in range(2)]
    red, blue, nothing = (255, 0, 0, 255), (0, 0, 255, 255), (0, 0, 0, 0)
    assert colors == [[red, blue, blue], [nothing, blue, blue]]


def test_aspect_ratio_is_preserved():
    image = np.asarray(montage([[Tile(np.full((10, 20, 3), 200, np.uint8))]], side=40))
    assert image.shape[:2] == (20 + 12, 40 + 12)


def test_images_from_the_pipeline():
    tensor = torch.arange(24, dtype=torch.uint8).view(3, 2, 4)
    rgb = to_image(tensor, is_bgr=False)
    assert rgb.shape == (2, 4, 3) and rgb[1, 2].tolist() == [6, 14, 22]
    assert to_image(tensor, is_bgr=True)[1, 2].tolist() == [22, 14, 6]
    gray = to_image(tensor[:1], is_bgr=True)
    assert gray[1, 2].tolist() == [6, 6, 6]


def test_png():
    image = montage([[Tile(RED)]], side=20)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(to_png(image)))), np.asarray(image))


@pytest.mark.parametrize('caption', ['', 'x'])
def test_one_caption_makes_room_in_all_rows(caption):
    heights = montage([[Tile(RED)], [Tile(BLUE, caption)]], side=20).size[1]
    assert heights == 2 * (32 + (26 if caption else 0)) + 8
