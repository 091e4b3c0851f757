from io import BytesIO

import numpy as np
from PIL import Image, ImageColor
from testing.search_assets import COLORS, write_davis, write_image

from mm_sop.datasets.labeled.davis import read_davis
from mm_sop.report.montage import RIGHT, WRONG
from mm_sop.report.strips import retrieval_strips, video_strips


def pixels(photo):
    return np.array(Image.open(BytesIO(photo.image)).convert('RGB')).reshape(-1, 3)


def test_right_and_wrong_images_are_framed(tmp_path):
    paths = [tmp_path / f'{number}.png' for number in range(3)]
    for path, color in zip(paths, COLORS, strict=False):
        write_image(path, color, noise=0)
    for is_right, frame, other in ((True, RIGHT, WRONG), (False, WRONG, RIGHT)):
        strip = dict(query=str(paths[0]), box=None, caption='AP 50', found=[(str(paths[2]), 0.5, is_right)])
        photo = retrieval_strips('strips', [strip], 'Text')
        shown = pixels(photo).tolist()
        assert list(ImageColor.getrgb(frame)) in shown and list(ImageColor.getrgb(other)) not in shown
        assert list(COLORS[0]) in shown and list(COLORS[2]) in shown and list(COLORS[1]) not in shown
    assert photo.text == 'Text. Green frames are right, orange ones wrong.'


def test_masks_and_true_contours_are_drawn(tmp_path):
    write_davis(tmp_path, ('one',))
    sequence = read_davis(tmp_path)[0]
    masks = list(sequence.masks)
    shown = dict(name='one', frames=list(sequence.frames), masks=masks, predicted=masks, scores=np.full(4, 0.8))
    photo = video_strips('video', [shown], num_frames=2)
    image = Image.open(BytesIO(photo.image))
    assert image.width > 3 * 256 > image.height
    shown = pixels(photo)
    assert (shown == 255).all(1).any()
    # Magenta over the red square, by 60 percent.
    painted = 0.6 * np.array([255, 0, 170]) + 0.4 * np.array(COLORS[0])
    assert (np.abs(shown - painted) < 6).all(1).sum() > 1000
