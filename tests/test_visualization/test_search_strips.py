from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageColor
from search_assets import COLORS, write_davis, write_picture

from mm_sop.datasets.davis import read_davis
from mm_sop.datasets.picture_files import PictureFiles
from mm_sop.visualization.montage import RIGHT, WRONG
from mm_sop.visualization.retrieval_strips import Strip, copies_chart, retrieval_strips, spread_over_quality
from mm_sop.visualization.style import LIGHT
from mm_sop.visualization.video_strips import video_strips


def pixels(photo):
    return np.array(Image.open(BytesIO(photo.image)).convert('RGB')).reshape(-1, 3)


def test_right_and_wrong_pictures_are_framed(tmp_path):
    paths = [tmp_path / f'{number}.png' for number in range(3)]
    for path, color in zip(paths, COLORS, strict=False):
        write_picture(path, color, noise=0)
    pictures = PictureFiles(paths, [])
    for is_right, frame, other in ((True, RIGHT, WRONG), (False, WRONG, RIGHT)):
        photo = retrieval_strips('strips', [Strip(0, 'AP 50', [(2, 0.5, is_right)])], pictures, pictures, 'Text')
        shown = pixels(photo).tolist()
        assert list(ImageColor.getrgb(frame)) in shown and list(ImageColor.getrgb(other)) not in shown
        assert list(COLORS[0]) in shown and list(COLORS[2]) in shown and list(COLORS[1]) not in shown
    assert photo.text == 'Text. Green frames are right, orange ones wrong.'


@pytest.mark.parametrize('count, expected', [(2, [3, 4]), (3, [3, 0, 4]), (9, [3, 1, 0, 4])])
def test_examples_go_from_the_best_to_the_worst(count, expected):
    assert spread_over_quality([0.5, 0.7, np.nan, 0.9, 0.1], count) == expected


def test_copies_chart_has_a_panel_for_each_series():
    precisions = {'strong': 0.4, 'jpegqual/20': 1.0, 'jpegqual/3': 0.9, 'crops/50': 0.7}
    figure = copies_chart(precisions, LIGHT)
    assert [axes.get_xlabel() for axes in figure.axes] == ['JPEG quality', 'area cropped away in %']
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[3, 90], [20, 100]]
    assert figure.axes[1].lines[-1].get_ydata()[0] == pytest.approx(40)
    assert len(copies_chart(dict(strong=0.4), LIGHT).axes) == 1


def test_masks_and_true_contours_are_drawn(tmp_path):
    write_davis(tmp_path, ('one',))
    sequence = read_davis(tmp_path)[0]
    photo = video_strips('video', [(sequence, sequence.masks, np.full(4, 0.8))], num_frames=2)
    image = Image.open(BytesIO(photo.image))
    assert image.width > 3 * 256 > image.height
    shown = pixels(photo)
    assert (shown == 255).all(1).any()
    # Magenta over the red square, by 60 per cent.
    painted = 0.6 * np.array([255, 0, 170]) + 0.4 * np.array(COLORS[0])
    assert (np.abs(shown - painted) < 6).all(1).sum() > 1000
