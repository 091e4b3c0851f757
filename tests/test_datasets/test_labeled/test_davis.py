import numpy as np
import pytest
from PIL import Image
from testing.search_assets import write_davis

from mm_sop.datasets.labeled.davis import encode_mask, read_davis, read_mask


@pytest.fixture
def folder(tmp_path):
    write_davis(tmp_path)
    return tmp_path


def test_sequences_are_listed_in_order(folder):
    sequences = read_davis(folder)
    assert [sequence.name for sequence in sequences] == ['one', 'two']
    assert [frame.name for frame in sequences[0].frames] == [f'{number:05d}.jpg' for number in range(6)]
    masks = np.stack([read_mask(path) for path in sequences[1].masks])
    assert masks.shape == (6, 48, 80) and masks.dtype == np.uint8
    assert np.array_equal(np.unique(masks), [0, 1, 2])


def test_masks_have_the_palette_of_davis(tmp_path):
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (tmp_path / 'mask.png').write_bytes(encode_mask(mask))
    assert np.array_equal(read_mask(tmp_path / 'mask.png'), mask)
    colors = np.array(Image.open(tmp_path / 'mask.png').convert('RGB')).reshape(-1, 3).tolist()
    assert colors[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colors[8] == [64, 0, 0] and colors[255] == [224, 224, 192]


def test_broken_sets_are_explained(folder):
    with pytest.raises(FileNotFoundError, match=r'train.txt does not exist: expected the names'):
        read_davis(folder, 'train')
    (folder / 'Annotations/480p/one/00003.png').unlink()
    with pytest.raises(ValueError, match='sequence one: 6 frames and 5 masks'):
        read_davis(folder)
    (folder / 'ImageSets/2017/val.txt').write_text('three\n')
    with pytest.raises(FileNotFoundError, match=r'three has no \*.jpg'):
        read_davis(folder)
    (folder / 'ImageSets/2017/val.txt').write_text('\n')
    with pytest.raises(ValueError, match='names no sequences'):
        read_davis(folder)


def test_color_masks_are_refused(tmp_path):
    Image.new('RGB', (4, 4)).save(tmp_path / 'mask.png')
    with pytest.raises(ValueError, match='mask.png has colors: expected a palette image'):
        read_mask(tmp_path / 'mask.png')
