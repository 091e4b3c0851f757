"""Running protocols: results, resumption, missing data, pages and the command."""

import importlib
import json
import sys
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pytest
import torch
from evaluation_encoders import BACKBONES, make_context, write_classes
from mmengine.config import Config
from mmpretrain.registry import MODELS

from mm_sop.datasets import LabelledImages
from mm_sop.evaluation.evaluate import run_protocols
from mm_sop.evaluation.protocol import (
    EvaluationTransform,
    MissingDataError,
    Protocol,
    ProtocolResult,
    Score,
    build_protocol,
    protocol_names,
)
from mm_sop.evaluation.results import EvaluationResults, format_figure, format_results
from mm_sop.visualization.evaluation import write_evaluation_page
from mm_sop.visualization.evaluation_charts import confusion_chart, grid_chart, scores_chart
from mm_sop.visualization.page import Chart, Photo
from mm_sop.visualization.style import LIGHT, chart_style


@cache
def draw_chart():
    return Chart.drawn('colours', partial(confusion_chart, np.eye(3), ['a', 'b', 'c'], 'Colours'), 'A chart.')


@dataclass
class CountingProtocol(Protocol):
    """Counts how often it runs."""

    folder: str = 'train'
    factor: float = 1.0

    def find_data(self, context):
        return dict(train=LabelledImages(context.find(self.folder, 'class folders'), context.transform.steps))

    def run(self, context, data):
        self.runs = getattr(self, 'runs', 0) + 1
        chart = draw_chart()
        score = Score(self.factor * float(context.features(data['train']).mean()), percent=False)
        return ProtocolResult(dict(mean=score), dict(answer=42), [chart, Photo('strip', chart.light, 'A <strip>.')])


@pytest.fixture
def context(tmp_path):
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
    assert len(EvaluationResults(context.work_dir).records) == 1


def test_card_has_all_that_a_figure_depends_on(context):
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


def test_what_is_skipped_takes_no_finished_result_away(context, tmp_path):
    done = evaluate(CountingProtocol(), context)
    context.data = tmp_path / 'elsewhere'
    skipped = evaluate(CountingProtocol(), context)
    assert skipped['status'] == 'skipped'
    assert EvaluationResults(context.work_dir).find(done['key']) == done


def test_page_shows_figures_pictures_and_card(context):
    record = evaluate(CountingProtocol(), context)
    page = write_evaluation_page(context.work_dir).read_text()
    assert format_figure(record['scores']['mean']) in page
    assert page.count('data:image/png') == 3
    assert 'A &lt;strip&gt;.' in page
    assert '&quot;answer&quot;: 42' in page
    for name in ('colours.png', 'colours_dark.png', 'strip.png'):
        assert (context.work_dir / f'pictures/counting_resnet0_{name}').is_file()


def test_table():
    scores = {
        'val_class_k20': dict(value=0.5, error=0.0123, percent=True),
        'rank': dict(value=7.1, error=None, percent=False),
    }
    done = dict(protocol='knn', checkpoint='a.pth', status='done', scores=scores, seconds=1.25)
    skipped = dict(protocol='copy', checkpoint='a.pth', status='skipped', reason='no data', seconds=0)
    lines = format_results([done, skipped]).splitlines()
    assert '| a.pth | knn | val class k20 | 50.0 ± 1.2 | 1.2 |' in lines
    assert '| a.pth | knn | rank | 7.100 |  |' in lines
    assert '- copy: no data' in lines


def test_names_and_options_are_checked():
    assert {'knn', 'linear', 'logistic'} <= set(protocol_names())
    assert build_protocol('knn', dict(temperature=0.1)).temperature == 0.1
    with pytest.raises(ValueError, match="no protocol 'knm': choose among .*knn, linear"):
        build_protocol('knm')
    with pytest.raises(ValueError, match='protocol knn has no option k: its options are readout'):
        build_protocol('knn', dict(k=3))


def test_transform():
    assert EvaluationTransform().resize_edge == 256
    assert EvaluationTransform(96).resize_edge == 96
    assert EvaluationTransform(96).steps[2]['backend'] == 'pillow'
    assert EvaluationTransform(96, interpolation='area').array_steps[1]['backend'] == 'cv2'
    with pytest.raises(ValueError, match='crop_size=64 must lie in'):
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
    """Runs tools/evaluate.py on a small data set with the given arguments."""
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
            train_dataloader=dict(dataset=dict(type='UnlabelledImages', data_root='none', pipeline=view)),
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
    assert '| epoch_1.pth | knn | val class k1 |' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'checkpoint', 'message'),
    [
        (['--protocols', 'knm'], 'epoch_1.pth', "no protocol 'knm'"),
        (['--protocols', 'knn', '--options', 'linear.epochs=3'], 'epoch_1.pth', '--options linear.epochs'),
        (['--protocols', 'knn'], 'epoch_2.pth', 'epoch_2.pth'),
    ],
)
def test_command_explains_what_is_wrong(command, arguments, checkpoint, message):
    with pytest.raises(SystemExit, match=message):
        command(*arguments, checkpoint=checkpoint)
