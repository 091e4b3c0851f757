import json
import pickle

import numpy as np
import pytest
from testing.search_assets import write_image

from mm_sop.datasets.labeled.retrieval_tasks import read_retrieval_task, read_revisited

NAMES = ['all_souls_000000', 'all_souls_000001', 'ashmolean_000000', 'bodleian_000000', 'oxford_000042']


def truth():
    """One query in the released format: arrays and lists, and a query without hard images."""
    return dict(
        imlist=NAMES,
        qimlist=['query_a', 'query_b'],
        gnd=[
            dict(bbx=[1.5, 2, 20.2, 18], easy=np.array([3, 0]), hard=np.array([1]), junk=np.array([4])),
            dict(bbx=np.array([0.0, 0, 8, 8]), easy=[2], hard=[], junk=[]),
        ],
    )


@pytest.fixture
def folder(tmp_path):
    for name in (*NAMES, 'query_a', 'query_b'):
        write_image(tmp_path / f'jpg/{name}.jpg')
    (tmp_path / 'gnd_roxford5k.pkl').write_bytes(pickle.dumps(truth(), protocol=2))
    return tmp_path


def grades(task, level):
    return [tuple(sorted(map(int, part)) for part in relevance) for relevance in task.levels[level]]


def test_levels_follow_the_revisited_rules(folder):
    task = read_retrieval_task(folder)
    assert [path.stem for path in task.database] == NAMES
    assert [path.stem for path in task.queries] == ['query_a', 'query_b']
    assert task.boxes == [[1.5, 2, 20.2, 18], [0, 0, 8, 8]]
    assert grades(task, 'easy') == [([0, 3], [1, 4]), ([2], [])]
    assert grades(task, 'medium') == [([0, 1, 3], [4]), ([2], [])]
    assert grades(task, 'hard') == [([1], [0, 3, 4]), ([], [2])]


def test_json_is_read_like_the_pickle(folder):
    file_list = json.loads(json.dumps(truth(), default=lambda array: array.tolist()))
    (folder / 'gnd_other.json').write_text(json.dumps(file_list))
    from_json, from_pickle = read_revisited(folder / 'gnd_other.json'), read_retrieval_task(folder)
    assert all(grades(from_json, level) == grades(from_pickle, level) for level in from_pickle.levels)


class Harmful:
    def __reduce__(self):
        return print, ('code of the pickle ran',)


def test_pickled_code_does_not_run(folder, capsys):
    (folder / 'gnd_roxford5k.pkl').write_bytes(pickle.dumps(dict(truth(), gnd=Harmful())))
    with pytest.raises(ValueError, match=r'gnd_roxford5k.pkl cannot be read: it contains builtins.print'):
        read_retrieval_task(folder)
    assert 'ran' not in capsys.readouterr().out


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda t: t.pop('qimlist'), 'malformed .*qimlist'),
        (lambda t: t['gnd'][0].pop('junk'), 'malformed .*junk'),
        (lambda t: t['gnd'][0].update(easy=[7]), 'index 7 with 5 images'),
        (lambda t: t['gnd'].pop(), '2 queries in qimlist and 1 in gnd'),
    ],
)
def test_malformed_truth_is_named(folder, change, message):
    content = truth()
    change(content)
    (folder / 'gnd_roxford5k.pkl').write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_retrieval_task(folder)


def test_missing_images_are_counted(folder):
    (folder / 'jpg/oxford_000042.jpg').unlink()
    with pytest.raises(FileNotFoundError, match='1 of 7 images are missing in .*jpg, the first is oxford_000042.jpg'):
        read_retrieval_task(folder)


def test_images_of_a_labeled_folder_search_for_their_class(tmp_path):
    for name in ('cat/1.png', 'cat/2.png', 'dog/1.png', 'cat/3.png'):
        write_image(tmp_path / name)
    task = read_retrieval_task(tmp_path)
    assert task.queries == task.database and task.boxes is None
    assert grades(task, 'all') == [([1, 2], [0]), ([0, 2], [1]), ([0, 1], [2]), ([], [3])]


def test_identities_win_over_classes(tmp_path):
    files = [dict(path=f'set/{number}.png', label=0, identity=number % 2) for number in range(4)]
    for file in files:
        write_image(tmp_path / file['path'])
    (tmp_path / 'set.json').write_text(json.dumps(dict(classes=['cat'], files=files)))
    assert grades(read_retrieval_task(tmp_path / 'set'), 'all')[1] == ([3], [1])
