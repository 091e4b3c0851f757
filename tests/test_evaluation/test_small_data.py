"""Every protocol on very few images: finite scores, or an error that says what is missing."""

import json
import math
import pickle

import pytest
import torch
from mmpretrain.registry import MODELS
from testing.evaluation_encoders import make_context, write_classes
from testing.search_assets import write_davis, write_image, write_oxford

from mm_sop.encoders.projector import FrozenProjector
from mm_sop.evaluation.context import build_protocol, protocol_names
from mm_sop.evaluation.results import pack_data
from mm_sop.report.evaluation import draw

OPTIONS = dict(
    clustering=dict(tries=1),
    finetune=dict(epochs=1, min_iterations=1, batch_size=8, fractions=(1, 0.1)),
    knn=dict(num_neighbors=(1, 200), labels=('class', 'identity')),
    linear=dict(learning_rates=(0.1,), weight_decays=(0.0,), epochs=1),
    locality=dict(num_images=1, max_images=2),
    logistic=dict(max_iterations=3),
    rank=dict(views=2),
    retrieval=dict(sets=('val',)),
    robustness=dict(max_images=1, epsilons=0.01, steps=1, step_sizes=0.1, dropped=0.5, noises=0.5, repeats=1),
    transfer=dict(linear_epochs=1),
)
# Images of a class for training and testing, classes, and what each protocol misses, if anything.
CASES = dict(
    one_class=(
        (3, 2, ('red',)),
        dict(clustering='no label among superclass, class, identity divides', finetune='at least two classes'),
    ),
    one_image_of_each=(
        (1, 1, ('blue', 'green', 'red')),
        dict(
            clustering='no label among superclass, class, identity divides the images of val',
            linear='every class has a single training image',
            transfer='every class has a single training image',
            retrieval='no query has another image of its object to find',
        ),
    ),
    one_image=(
        (1, 1, ('red',)),
        dict(
            clustering='no label',
            finetune='at least two classes',
            linear='single training image',
            transfer='single training image',
            retrieval='no query',
            rank='at least 2 images',
        ),
    ),
)
# These take long, and use the classifiers of other protocols.
SLOW = ('locality', 'robustness')
OTHER_DATA = ('copy', 'videoseg')


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('small')
    for case, ((train, val, classes), _) in CASES.items():
        write_classes(root / case / 'train', train, classes)
        write_classes(root / case / 'val', val, classes, seed=1)
    return root


def test_all_protocols_are_here():
    assert {*OPTIONS, *OTHER_DATA} == set(protocol_names())


@pytest.mark.parametrize(
    ('case', 'name'),
    [(case, name) for case in CASES for name in OPTIONS if name not in SLOW or case == 'one_class'],
)
def test_classes(folders, tmp_path, case, name):
    torch.manual_seed(1)
    neck = MODELS.build(dict(type='SOPNeck', in_channels=32, hid_channels=16, out_channels=8))
    message = CASES[case][1].get(name)
    check(name, make_context(folders / case, tmp_path, projector=FrozenProjector(neck)), message)


def check(name, context, message=None):
    protocol = build_protocol(name, OPTIONS.get(name))
    context.readouts = protocol.readouts or ('global',)
    if message:
        with pytest.raises(ValueError, match=message):
            protocol.run(context, protocol.find_data(context))
        return
    result = protocol.run(context, protocol.find_data(context))
    assert result.scores
    for score in result.scores.values():
        assert math.isfinite(score.value) and math.isfinite(score.error or 0)
    json.dumps(result.card, allow_nan=False)
    pack_data(result.data)
    assert draw(name, result.data)


def test_one_copy_and_one_object(tmp_path):
    for kind in ('original', 'strong'):
        write_image(tmp_path / f'copies/{kind}/200000.jpg', (200, 30, 30), seed=0)
    write_davis(tmp_path / 'video', names=('one',), frames=3)
    check('copy', make_context(tmp_path, tmp_path / 'work'))
    check('videoseg', make_context(tmp_path, tmp_path / 'work'))


def test_identities_alone_are_classified(tmp_path):
    for part in ('bank', 'seen', 'test'):
        write_classes(tmp_path / 'classes' / part, 2, classes=('red',))
        files = [dict(path=f'{part}/red/red_0_{index}.png', label=0, identity=index) for index in range(2)]
        (tmp_path / f'classes/{part}.json').write_text(json.dumps(dict(classes=['red'], files=files)))
    context = make_context(tmp_path, tmp_path / 'work')
    protocol = build_protocol('knn', dict(labels='identity', num_neighbors=1, fractions=(), shots=()))
    result = protocol.run(context, protocol.find_data(context))
    assert list(result.scores) == ['seen_identity_k1', 'test_identity_k1']


def test_levels_without_an_answer_have_no_score(tmp_path):
    write_oxford(tmp_path / 'retrieval')
    path = tmp_path / 'retrieval/gnd_tiny.pkl'
    truth = pickle.loads(path.read_bytes())
    for entry in truth['gnd']:
        entry['hard'] = []
    path.write_bytes(pickle.dumps(truth))
    context = make_context(tmp_path, tmp_path / 'work')
    protocol = build_protocol('retrieval')
    result = protocol.run(context, protocol.find_data(context))
    assert {name.split()[1] for name in result.scores} == {'medium', 'easy'}
    assert result.card['sets']['retrieval']['answerable']['hard'] == 0
