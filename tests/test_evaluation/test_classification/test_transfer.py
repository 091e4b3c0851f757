"""Transfer to datasets in their published layouts."""

import pytest
from testing.evaluation_encoders import make_context, run, write_classes

from mm_sop.evaluation.classification.transfer import TransferProtocol
from mm_sop.evaluation.context import MissingDataError


def write_pets(folder):
    """Oxford-IIIT Pets in its true layout."""
    write_classes(folder / 'images', 8, classes=('Abyssinian', 'beagle'))
    (folder / 'annotations').mkdir()
    for split, numbers in dict(trainval=range(6), test=range(6, 8)).items():
        lines = [f'{name}_0_{n} {k} 1 1' for k, name in enumerate(('Abyssinian', 'beagle'), 1) for n in numbers]
        (folder / f'annotations/{split}.txt').write_text('\n'.join(lines) + '\n')
    for path in (folder / 'images').glob('*/*.png'):
        path.rename(folder / 'images' / f'{path.stem}.jpg')


def test_transfer_to_the_sets_that_exist(tmp_path, capsys):
    write_pets(tmp_path / 'Oxford-IIIT_Pets')
    for part, count in (('train', 8), ('val', 2)):
        write_classes(tmp_path / 'stl10' / part, count, seed=count)
    protocol = TransferProtocol(sets=('Oxford-IIIT_Pets', 'food-101', 'stl10'), num_neighbors=20, linear_epochs=2)
    context = make_context(tmp_path, tmp_path / 'work')
    result = run(protocol, context)
    assert list(result.scores) == [
        'Oxford-IIIT_Pets_knn_test', 'Oxford-IIIT_Pets_linear_test', 'stl10_knn_val', 'stl10_linear_val'
    ]  # fmt: skip
    assert all(0 <= score.value <= 1 for score in result.scores.values())
    assert protocol.readouts == ('global', 'global+patch', 'last4')
    assert len(protocol.find_data(context)['Oxford-IIIT_Pets/train']) == 12
    assert 'no folder food-101' in capsys.readouterr().out


def test_transfer_calls_the_data_folder_by_its_name(tmp_path):
    for part in ('train', 'val'):
        write_classes(tmp_path / 'images' / part, 1)
    found = TransferProtocol().find_data(make_context(tmp_path / 'images', tmp_path))
    assert list(found) == ['images/train', 'images/val']


def test_transfer_without_any_set(tmp_path):
    with pytest.raises(MissingDataError, match='has none of the sets food-101, Flowers102, .*see docs/evaluation.md'):
        TransferProtocol().find_data(make_context(tmp_path, tmp_path))
