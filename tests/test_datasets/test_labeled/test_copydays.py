import pytest
from testing.search_assets import write_copydays, write_image

from mm_sop.datasets.labeled.copydays import read_copydays


@pytest.fixture
def folder(tmp_path):
    write_copydays(tmp_path)
    return tmp_path


def test_copies_point_to_their_originals(folder):
    copies = read_copydays(folder)
    assert [path.name for path in copies.originals] == ['200000.jpg', '200100.jpg', '200200.jpg', '200300.jpg']
    assert list(dict.fromkeys(copies.kinds)) == ['strong', 'jpegqual/3', 'jpegqual/75', 'crops/50']
    for path, kind, source in zip(copies.paths, copies.kinds, copies.sources, strict=True):
        assert str(path.relative_to(folder)).startswith(kind)
        assert copies.originals[source].name[:4] == path.name[:4]
    assert copies.sources[:5] == [0, 1, 1, 2, 3]


def test_a_wrong_layout_is_explained(folder, tmp_path_factory):
    write_image(folder / 'strong/209901.jpg')
    with pytest.raises(ValueError, match=r'209901.jpg is a copy of 2099, which original/ does not have'):
        read_copydays(folder)
    write_image(folder / 'original/200001.jpg')
    with pytest.raises(ValueError, match='same 4 digits'):
        read_copydays(folder)
    with pytest.raises(FileNotFoundError, match='original does not exist: expected the layout of Copydays'):
        read_copydays(tmp_path_factory.mktemp('empty'))
