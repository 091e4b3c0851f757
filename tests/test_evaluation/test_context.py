"""Running protocols: results, resumption, missing data, pages and the command."""

import importlib
import json
import shutil
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from testing.evaluation_encoders import BACKBONES, make_context, make_encoder, write_classes

from mm_sop.datasets import LabeledImages
from mm_sop.datasets.transforms.evaluation import EvaluationTransform
from mm_sop.evaluation.context import (
    PROTOCOLS,
    MissingDataError,
    Protocol,
    ProtocolResult,
    Score,
    build_protocol,
    protocol_names,
)
from mm_sop.evaluation.features.identity import content_key
from mm_sop.evaluation.results import EvaluationResults, format_results, format_value, pack_data, read_data
from mm_sop.evaluation.run import make_card, run_protocols
from mm_sop.report.evaluation import DRAWINGS, draw, write_evaluation_page
from mm_sop.report.evaluation_charts import confusion_chart, grid_chart, scores_chart
from mm_sop.report.page import Chart, Photo
from mm_sop.report.style import LIGHT, chart_style


def draw_counting(data):
    chart = Chart.drawn('colors', partial(confusion_chart, data['matrix'], data['classes'], 'Colors'), 'A chart.')
    return [chart, Photo('strip', chart.light, 'A <strip>.')]


@dataclass
class CountingProtocol(Protocol):
    """Counts how often it runs."""

    folder: str = 'train'
    factor: float = 1.0

    def find_data(self, context):
        return dict(train=LabeledImages(context.find(self.folder, 'class folders'), context.transform.steps))

    def run(self, context, data):
        self.runs = getattr(self, 'runs', 0) + 1
        score = Score(self.factor * float(context.features(data['train']).mean()), percent=False)
        shown = dict(matrix=np.eye(3), classes=['a', 'b', 'c'])
        return ProtocolResult(dict(mean=score), dict(answer=42), shown)


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setitem(DRAWINGS, 'counting', draw_counting)
    write_classes(tmp_path / 'data/train', 2)
    return make_context(tmp_path / 'data', tmp_path / 'work')


def evaluate(protocol, context):
    (record,) = run_protocols(dict(counting=protocol), context, EvaluationResults(context.work_dir))
    return record


def test_finished_protocols_are_not_run_again(context):
    protocol = CountingProtocol()
    first = evaluate(protocol, context)
    assert first['status'] == 'done'
    assert evaluate(protocol, context) == first
    assert protocol.runs == 1
    assert json.loads((context.work_dir / 'results.json').read_text()) == [first]


def test_whatever_changes_a_result_makes_it_run_again(context, tmp_path):
    keys = {evaluate(CountingProtocol(), context)['key']}
    keys.add(evaluate(CountingProtocol(factor=2.0), context)['key'])
    context.seed = 1
    keys.add(evaluate(CountingProtocol(), context)['key'])
    context.transform = EvaluationTransform(24)
    keys.add(evaluate(CountingProtocol(), context)['key'])
    write_classes(tmp_path / 'data/train', 1, classes=('white',))
    keys.add(evaluate(CountingProtocol(), context)['key'])
    assert len(keys) == 5
    assert [record['setup']['crop_size'] for record in EvaluationResults(context.work_dir)] == [32, 24]


def read_table(path):
    """Cells of the lines of a Markdown table."""
    lines = [line for line in path.read_text().splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def other_data(context, tmp_path):
    context.data = tmp_path / 'other'
    write_classes(context.data / 'train', 1, seed=5)


def other_weights(context, tmp_path):
    context.encoder = make_encoder('resnet', seed=1)
    context.encoder.identity['checkpoint'] = 'resnet0.pth'


def other_network(context, tmp_path):
    context.encoder.identity['network'] = 'student'


def other_size(context, tmp_path):
    context.transform = EvaluationTransform(24, 28)


@pytest.mark.parametrize(
    ('change', 'column'),
    [(other_data, 'data'), (other_weights, 'weights'), (other_network, 'network'), (other_size, 'crop_size')],
)
def test_results_of_equally_named_checkpoints_are_told_apart(context, tmp_path, change, column):
    protocol, folder = CountingProtocol(), context.work_dir
    first = evaluate(protocol, context)
    changed = replace(context, encoder=make_encoder('resnet'))
    change(changed, tmp_path)
    second = evaluate(protocol, changed)
    assert list(EvaluationResults(folder)) == [first, second]
    assert [evaluate(protocol, each) for each in (context, changed)] == [first, second] and protocol.runs == 2
    page = write_evaluation_page(folder).read_text()
    assert len(list((folder / 'images').iterdir())) == 6
    heading, _, *rows = read_table(folder / 'results.md')
    assert column in heading and rows[0][heading.index(column)] != rows[1][heading.index(column)]
    assert column in page


def test_records_of_older_files_are_replaced(context):
    old = dict(protocol='counting', checkpoint='resnet0.pth', key='old', card={}, status='done', seconds=1.0)
    old.update(scores=dict(mean=dict(value=0.5, error=float('nan'), percent=False)), images=[])
    context.work_dir.mkdir()
    text = json.dumps([old, dict(old, protocol='other')])
    assert 'NaN' in text
    (context.work_dir / 'results.json').write_text(text)
    assert format_value(EvaluationResults(context.work_dir).find('old')['scores']['mean']) == '0.500'
    evaluate(CountingProtocol(), context)
    assert [record['protocol'] for record in EvaluationResults(context.work_dir)] == ['other', 'counting']
    assert 'crop_size' not in (context.work_dir / 'results.md').read_text()


def test_results_are_valid_json(context):
    evaluate(CountingProtocol(factor=float('nan')), context)
    text = (context.work_dir / 'results.json').read_text()
    (record,) = json.loads(text, parse_constant=pytest.fail)
    assert record['scores']['mean'] == dict(value=None, error=None, percent=False)
    assert '–' in format_results([record])
    assert 'mean' in write_evaluation_page(context.work_dir).read_text()


def test_failures_are_recorded_and_the_others_are_run(context):
    done = evaluate(CountingProtocol(), context)
    protocols = dict(counting=CountingProtocol(factor='a'), later=CountingProtocol(factor=3.0))
    failed, later = run_protocols(protocols, context, EvaluationResults(context.work_dir))
    assert (failed['status'], later['status']) == ('failed', 'done')
    assert failed['reason'].startswith("TypeError: can't multiply")
    assert list(EvaluationResults(context.work_dir)) == [done, failed, later]
    assert any(row[2].startswith("failed: TypeError: can't") for row in read_table(context.work_dir / 'results.md'))
    assert 'TypeError: can' in write_evaluation_page(context.work_dir).read_text()
    again, _ = run_protocols(protocols, context, EvaluationResults(context.work_dir))
    assert again['status'] == 'failed' and len(EvaluationResults(context.work_dir).records) == 3
    protocols['counting'].factor = 2.0
    assert run_protocols(protocols, context, EvaluationResults(context.work_dir))[0]['status'] == 'done'
    assert [record['status'] for record in EvaluationResults(context.work_dir)] == ['done', 'done']


def test_a_failure_ends_all_processes(context, monkeypatch):
    monkeypatch.setattr('mm_sop.evaluation.run.get_world_size', lambda: 2)
    with pytest.raises(TypeError):
        evaluate(CountingProtocol(factor='a'), context)
    (record,) = EvaluationResults(context.work_dir)
    assert record['status'] == 'failed'


def write_text(name, folder):
    (folder / name).write_text('{}')


def write_file_list(folder):
    files = [dict(path=str(path.relative_to(folder)), label=0) for path in sorted(folder.glob('train/*/*'))]
    (folder / 'train.json').write_text(json.dumps(dict(classes=['all'], files=files)))


@pytest.mark.parametrize(
    ('name', 'options', 'change'),
    [
        ('knn', {}, partial(write_text, '1percent.txt')),
        ('logistic', {}, partial(write_text, '10percent.txt')),
        ('finetune', {}, partial(write_text, '1percent.txt')),
        ('robustness', {}, partial(write_text, 'backgrounds/in_to_in9.json')),
        ('retrieval', dict(sets='train'), write_file_list),
    ],
)
def test_lists_are_part_of_the_key(context, name, options, change):
    write_classes(context.data / 'val', 1)
    write_classes(context.data / 'backgrounds/original/val', 1)
    protocol, keys = build_protocol(name, options), []
    for _ in range(2):
        keys.append(content_key(make_card(name, protocol, context, protocol.find_data(context))))
        change(context.data)
    assert keys[0] != keys[1]


def test_card_has_everything_that_a_score_depends_on(context):
    card = evaluate(CountingProtocol(factor=2.0), context)['card']
    assert card['options'] == dict(folder='train', factor=2.0)
    assert card['encoder']['checkpoint_sha256'] == 'resnet0'
    assert card['transform'] == dict(crop_size=32, resize_edge=32, interpolation='bicubic')
    assert card['data']['train']['num_images'] == 6
    assert card['found'] == dict(answer=42)
    assert card['software']['torch'] == torch.__version__
    assert (card['seed'], card['dtype'], card['version']) == (0, 'float32', 1)


def test_missing_data_are_recorded(context):
    record = evaluate(CountingProtocol(folder='birds'), context)
    assert record['status'] == 'skipped'
    assert record['reason'].endswith('data/birds does not exist: expected class folders')
    assert 'counting: ' in (context.work_dir / 'results.md').read_text()
    with pytest.raises(MissingDataError):
        context.find('birds', 'birds')


def test_skipped_protocols_never_overwrite_a_result(context, tmp_path):
    done = evaluate(CountingProtocol(), context)
    context.data = tmp_path / 'elsewhere'
    skipped = evaluate(CountingProtocol(), context)
    assert skipped['status'] == 'skipped'
    assert EvaluationResults(context.work_dir).find(done['key']) == done


def test_page_shows_scores_images_and_card(context):
    record = evaluate(CountingProtocol(), context)
    page = write_evaluation_page(context.work_dir).read_text()
    assert format_value(record['scores']['mean']) in page
    assert page.count('data:image/png') == 3
    assert 'A &lt;strip&gt;.' in page
    assert '&#34;answer&#34;: 42' in page
    (record,) = EvaluationResults(context.work_dir)
    colors, strip = (image['name'] for image in record['images'])
    assert colors.startswith('counting_resnet0_') and colors.endswith('_colors')
    for name in (f'{colors}.png', f'{colors}_dark.png', f'{strip}.png'):
        assert (context.work_dir / 'images' / name).is_file()


def test_table(tmp_path):
    scores = {
        'val_class_k20': dict(value=0.5, error=0.0123, percent=True),
        'rank': dict(value=7.1, error=None, percent=False),
    }
    done = dict(protocol='knn', checkpoint='a.pth', status='done', scores=scores, seconds=1.25)
    skipped = dict(protocol='copy', checkpoint='a.pth', status='skipped', reason='no data', seconds=0)
    (tmp_path / 'results.md').write_text(format_results([done, skipped]))
    rows = read_table(tmp_path / 'results.md')
    assert ['a.pth', 'knn', 'val class k20', '50.0 ± 1.2', '1.2'] in rows
    assert ['a.pth', 'knn', 'rank', '7.100', ''] in rows
    assert '- copy: no data' in (tmp_path / 'results.md').read_text().splitlines()


def test_data_of_a_page_are_stored_with_the_result(context):
    record = evaluate(CountingProtocol(), context)
    assert 'images' not in record
    results = EvaluationResults(context.work_dir)
    data = results.read_data(record)
    assert np.array_equal(data['matrix'], np.eye(3)) and data['classes'] == ['a', 'b', 'c']
    first = write_evaluation_page(context.work_dir).read_text()
    assert len(EvaluationResults(context.work_dir).records[0]['images']) == 2
    # The images are drawn once, and a page needs no data afterwards.
    shutil.rmtree(context.work_dir / 'data')
    assert write_evaluation_page(context.work_dir).read_text() == first
    assert results.read_data(dict(status='done')) == {} and draw('unknown', {}) == []


def test_data_are_packed_with_all_arrays(tmp_path):
    data = dict(
        points=np.arange(6.0).reshape(2, 3), paths=[Path('a/b')], nested=[dict(image=np.zeros((2, 2), np.uint8))]
    )
    (tmp_path / 'data.npz').write_bytes(pack_data(data))
    read = read_data(tmp_path / 'data.npz')
    assert np.array_equal(read['points'], data['points']) and read['paths'] == ['a/b']
    assert read['nested'][0]['image'].dtype == np.uint8


def test_names_and_options_are_checked():
    assert {'knn', 'linear', 'logistic'} <= set(protocol_names())
    assert build_protocol('knn', dict(temperature=0.1)).temperature == 0.1
    with pytest.raises(ValueError, match="no protocol 'knm': choose among .*knn, linear"):
        build_protocol('knm')
    with pytest.raises(ValueError, match='protocol knn has no option k: its options are readout'):
        build_protocol('knn', dict(k=3))
    with pytest.raises(ValueError, match='knn reads out last9: expected features among global, patch'):
        build_protocol('knn', dict(readout='last9'))


@dataclass
class FreeProtocol(CountingProtocol):
    """Has options of other types."""

    mode: Literal['fast', 'slow'] = 'slow'
    sizes: dict[str, int] | None = None


def test_one_item_is_a_sequence_of_one():
    protocol = build_protocol('knn', dict(num_neighbors=20, labels='class', fractions=[1, 0.5]))
    assert (protocol.num_neighbors, protocol.labels, protocol.fractions) == ((20,), ('class',), (1, 0.5))
    protocol = build_protocol('videoseg', dict(radius=None, temperature=1))
    assert (protocol.radius, protocol.temperature) == (None, 1)
    with patch.dict(PROTOCOLS.module_dict, own=FreeProtocol):
        assert build_protocol('own', dict(mode='fast', sizes=dict(a=1))).sizes == dict(a=1)


@pytest.mark.parametrize(
    ('name', 'option', 'value', 'message'),
    [
        ('knn', 'num_neighbors', [10, 'x'], r"knn.num_neighbors: expected int, got 'x' \(str\)"),
        ('knn', 'tries', 2.5, 'knn.tries: expected int, got 2.5'),
        ('knn', 'tries', True, 'knn.tries: expected int, got True'),
        ('knn', 'temperature', 'warm', 'knn.temperature: expected float'),
        ('linear', 'augment', 1, r'linear.augment: expected bool, got 1 \(int\)'),
        ('videoseg', 'radius', '12px', 'videoseg.radius: expected int or None'),
        ('retrieval', 'sets', 3, 'retrieval.sets: expected str'),
    ],
)
def test_types_of_options_are_checked(name, option, value, message):
    with pytest.raises(ValueError, match=message):
        build_protocol(name, {option: value})


def test_transform():
    assert EvaluationTransform().resize_edge == 256
    assert EvaluationTransform(96).resize_edge == 96
    assert EvaluationTransform(96).steps[2]['backend'] == 'pillow'
    assert EvaluationTransform(96, interpolation='area').array_steps[1]['backend'] == 'cv2'
    with pytest.raises(ValueError, match="interpolation 'bicubicc': expected one of bicubic, bilinear"):
        EvaluationTransform(96, interpolation='bicubicc')
    with pytest.raises(ValueError, match='crop_size=64 must be in'):
        EvaluationTransform(64, 48)


def test_charts_show_every_cell():
    with chart_style(LIGHT):
        confusion = confusion_chart(np.array([[3, 1], [0, 0]]), ['a', 'b'], 'Title', LIGHT)
        grid = grid_chart({'x': [0.1, 0.5], 'y': [0.2, 0.3]}, ['1', '2'], ('x', 1), LIGHT)
        lines = scores_chart({'k-NN': {'val': {'1%': (0.5, None), '10%': (0.7, 0.1)}}}, 'labels', LIGHT)
    assert [text.get_text() for text in confusion.axes[0].texts] == ['75', '25', '0', '0']
    assert [text.get_text() for text in grid.axes[0].texts] == ['10', '50', '20', '30']
    assert grid.axes[0].patches[0].get_xy() == (0.5, -0.5)
    assert lines.axes[0].lines[0].get_ydata().tolist() == [50, 70]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs tools/evaluate.py on a small dataset with the given arguments."""
    write_classes(tmp_path / 'data/train', 4)
    write_classes(tmp_path / 'data/val', 2, seed=1)
    torch.manual_seed(0)
    state = {f'backbone.{name}': value for name, value in MODELS.build(BACKBONES['resnet']).state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'epoch_1.pth')
    view = [dict(type='FastRandomResizedCrop', scale=32)]
    Config(
        dict(
            model=dict(type='SimSiam', backbone=BACKBONES['resnet']),
            data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True),
            train_dataloader=dict(dataset=dict(type='UnlabeledImages', data_root='none', pipeline=view)),
        )
    ).dump(tmp_path / 'config.py')
    module = importlib.import_module('tools.evaluate')

    def run(*arguments, checkpoint='epoch_1.pth'):
        fixed = [str(tmp_path / 'config.py'), str(tmp_path / checkpoint), '--data', str(tmp_path / 'data')]
        monkeypatch.setattr(sys, 'argv', ['evaluate.py', *fixed, '--num-workers', '0', *arguments])
        module.main()
        return tmp_path / 'evaluation'

    return run


def test_command(command, capsys):
    folder = command('--protocols', 'knn', '--options', 'knn.num_neighbors=[1,3]', 'knn.tries=2')
    (record,) = json.loads((folder / 'results.json').read_text())
    assert {'val_class_k1', 'val_class_k3', 'val_class_1_shot_k1'} <= set(record['scores'])
    assert record['card']['transform']['crop_size'] == 32
    assert (folder / 'index.html').is_file()
    assert 'val class k1 ' in capsys.readouterr().out


def test_command_runs_all_protocols_and_names_those_that_failed(command, tmp_path):
    (tmp_path / 'data/10percent.txt').write_text('unknown.png')
    with pytest.raises(SystemExit, match='failed: knn. The reasons are in results.md'):
        command('--protocols', 'knn', 'rank', '--options', 'knn.num_neighbors=1', 'rank.views=2')
    records = json.loads((tmp_path / 'evaluation/results.json').read_text())
    assert [(record['protocol'], record['status']) for record in records] == [('knn', 'failed'), ('rank', 'done')]
    assert 'unknown.png' in records[0]['reason'] and 'unknown.png' in (tmp_path / 'evaluation/results.md').read_text()


@pytest.mark.parametrize(
    ('arguments', 'checkpoint', 'message'),
    [
        (['--protocols', 'knm'], 'epoch_1.pth', "no protocol 'knm'"),
        (['--protocols', 'knn', '--options', 'linear.epochs=3'], 'epoch_1.pth', '--options linear.epochs'),
        (['--protocols', 'knn'], 'epoch_2.pth', 'epoch_2.pth'),
        (['--options', 'knn.tries=many'], 'epoch_1.pth', 'option knn.tries: expected int'),
        (['--interpolation', 'bicubicc'], 'epoch_1.pth', "interpolation 'bicubicc': expected"),
    ],
)
def test_command_explains_what_is_wrong(command, arguments, checkpoint, message):
    with pytest.raises(SystemExit, match=message):
        command(*arguments, checkpoint=checkpoint)
