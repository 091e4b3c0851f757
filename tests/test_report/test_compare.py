import json
import re

import pytest
from mmengine.config import Config
from PIL import Image
from testing.sop_models import sop_config

from mm_sop.encoders.checkpoint import WeightsError
from mm_sop.evaluation.classification.knn_records import KNNRecords
from mm_sop.evaluation.context import ProtocolResult, Score
from mm_sop.evaluation.results import EvaluationResults, finished_record
from mm_sop.report import page
from mm_sop.report.compare import (
    MAX_RUNS,
    card_differences,
    config_differences,
    read_runs,
    write_comparison,
)
from mm_sop.report.montage import to_png


@pytest.fixture
def blank_charts(monkeypatch):
    """Replace charts, which are tested elsewhere."""
    blank = to_png(Image.new('RGB', (8, 8)))
    monkeypatch.setattr(page, 'render', lambda draw, theme: blank)


def score(accuracy):
    return dict(accuracy=accuracy, standard_error=0.01)


def write_run(folder, accuracies, seed=0, loss=3.0, **scores):
    """A work directory as a run leaves it."""
    log = folder / '20260101_000000' / 'vis_data'
    log.mkdir(parents=True)
    config = Config(dict(model=sop_config(), randomness=dict(seed=seed), work_dir=str(folder), note='a|b'))
    config.dump(log / 'config.py')
    lines = [dict(step=step, loss=loss, time=2.0, images_per_second=10.0 * step, memory=9) for step in (1, 2, 3)]
    (log / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    records = KNNRecords(folder)
    records.add(dict(network='raw_pixels', iter=None, epoch=None, seconds=1.0, scores=dict(seen_class_k5=score(0.99))))
    for iteration, accuracy in accuracies.items():
        scores_now = dict(seen_class_k5=score(accuracy))
        records.add(dict(network='teacher', iter=iteration, epoch=1, seconds=2.0, scores=scores_now))
        records.add(
            dict(network='student', iter=iteration, epoch=1, seconds=0.0, scores=dict(seen_class_k5=score(0.9)))
        )
    results = EvaluationResults(folder / 'evaluation')
    for checkpoint, value in scores.items():
        base = dict(protocol='linear', checkpoint=checkpoint, key=checkpoint, card={})
        scores_now = dict(top1_accuracy=Score(value, 0.02), top5_accuracy=Score(0.9))
        results.add(finished_record(base, ProtocolResult(scores_now), 1.0))
    skipped = dict(
        protocol='retrieval', checkpoint='a', key='', status='skipped', reason='absent', card={}, seconds=0.0
    )
    results.add(skipped)
    return folder


def test_page_tables_and_scores(tmp_path, blank_charts):
    first = write_run(tmp_path / 'one' / 'run', {0: 0.2, 5: 0.4}, older=0.5, newer=0.61)
    second = write_run(tmp_path / '<two>' / 'run', {0: 0.7, 5: 0.3}, seed=1)
    target = write_comparison(read_runs([first, second]), tmp_path / 'out')
    assert sorted(path.name for path in target.parent.iterdir()) == ['compare.json', 'compare.md', 'index.html']

    data = json.loads((tmp_path / 'out/compare.json').read_text())
    one, two = data['runs']['one/run'], data['runs']['<two>/run']
    assert one['knn']['seen_class_k5']['accuracy'] == 0.4 and two['knn']['seen_class_k5']['accuracy'] == 0.3
    assert one['evaluation'] == {
        'linear/top1_accuracy': dict(value=0.61, error=0.02, percent=True),
        'linear/top5_accuracy': dict(value=0.9, error=None, percent=True),
    }
    assert two['evaluation'] == {}
    cost = one['cost']
    assert cost['iterations'] == 3 and cost['images per second'] == 20 and cost['peak memory in MiB'] == 9
    # Three iterations of two seconds, four records of both networks and one of the pixels.
    assert cost['seconds of training'] == 6 and cost['seconds of evaluation'] == 5 and cost['seconds in total'] == 11
    assert 0 < cost['parameters of the backbone'] < cost['trained parameters']
    assert data['config_differences'] == {'randomness.seed': ['0', '1']}

    table = re.sub(' +', ' ', (tmp_path / 'out/compare.md').read_text())
    assert '| accuracy in % | one/run | <two>/run |' in table
    assert '| seen class, k = 5 | 40.0 ± 1.0 | 30.0 ± 1.0 |' in table
    first_metrics, folded = table.split('### All metrics of linear')
    assert '| linear: top1 accuracy | 61.0 ± 2.0 | |' in first_metrics and 'top5' not in first_metrics
    assert '| top5 accuracy | 90.0 | |' in folded
    assert '| randomness.seed | 0 | 1 |' in table
    assert 'Best at “seen class, k = 5” by k-NN: one/run with 40.0 ± 1.0 %.' in table

    html = target.read_text()
    assert '<two>' not in html and '&lt;two&gt;/run' in html
    titles = ['k-nearest neighbors during training', 'Evaluation protocols', 'Cost', 'Differences of the configs']
    assert re.findall('<h2>(.*?)</h2>', html) == [*titles, 'Training']
    assert 'alt="loss over the iterations' in html and 'http' not in re.sub('data:.*?"', '', html)


def evaluate_run(folder, protocol, checkpoint, crop, data='data/a', **scores):
    encoder = dict(checkpoint=checkpoint, checkpoint_sha256=checkpoint * 8, prefix='backbone.')
    card = dict(
        encoder=encoder, transform=dict(crop_size=crop), seed=0, data=dict(train=dict(sha256='0123456789abcdef'))
    )
    base = dict(protocol=protocol, checkpoint=checkpoint, key=f'{protocol}{crop}', card=card)
    base['setup'] = dict(data=data, crop_size=crop, weights=checkpoint)
    result = ProtocolResult({name: Score(value) for name, value in scores.items()}, dict(chosen=crop))
    EvaluationResults(folder / 'evaluation').add(finished_record(base, result, 1.0))


def test_cards_of_runs_are_compared(tmp_path, blank_charts):
    runs = [write_run(tmp_path / name, {0: 0.2}) for name in ('one', 'two', 'three')]
    for run, crop, data in zip(runs, (224, 64, 224), ('data/a', 'data/a', 'data/b'), strict=True):
        for protocol in ('knn', 'rank') if crop == 224 else ('knn',):
            evaluate_run(run, protocol, 'last', crop, data, figure=0.5)
    write_comparison(read_runs(runs), tmp_path / 'out')
    found = json.loads((tmp_path / 'out/compare.json').read_text())['card_differences']
    assert found == {
        'knn: data_folder': ['data/a', 'data/a', 'data/b'],
        'knn: transform.crop_size': ['224', '64', '224'],
        'rank: data_folder': ['data/a', '', 'data/b'],
    }
    assert '| knn: transform.crop_size | 224 | 64 | 224 |' in re.sub(
        ' +', ' ', (tmp_path / 'out/compare.md').read_text()
    )
    assert '<h2>Differences of the evaluations</h2>' in (tmp_path / 'out/index.html').read_text()


def test_equal_differences_of_protocols_are_one_row_with_short_hashes(tmp_path):
    runs = [write_run(tmp_path / name, {0: 0.2}) for name in ('one', 'two')]
    for run, checkpoint in zip(runs, ('a', 'b'), strict=True):
        for protocol in ('knn', 'rank'):
            evaluate_run(run, protocol, checkpoint, 64, figure=0.5)
    assert card_differences(read_runs(runs)) == {'knn, rank: encoder.checkpoint': ['a', 'b']}
    path = runs[0] / 'evaluation/results.json'
    path.write_text(path.read_text().replace('0123456789abcdef', 'fedcba9876543210'))
    assert card_differences(read_runs(runs))['knn, rank: data.train.sha256'] == ['fedcba98…', '01234567…']


def test_scores_of_checkpoints_are_not_mixed(tmp_path):
    folder = write_run(tmp_path / 'run', {0: 0.2})
    evaluate_run(folder, 'knn', 'early', 64, k10=0.1, k20=0.2)
    evaluate_run(folder, 'rank', 'early', 64, rankme=0.3)
    evaluate_run(folder, 'knn', 'late', 64, k10=0.4)
    (run,) = read_runs([folder])
    assert {key: score['value'] for key, score in run.scores.items()} == {('knn', 'k10'): 0.4}


def test_charts_are_drawn_for_more_runs_than_colors(tmp_path):
    runs = read_runs([write_run(tmp_path / f'r{number}', {0: 0.1, 5: 0.1 * number}) for number in range(6)])
    write_comparison(runs, tmp_path / 'out')
    html = (tmp_path / 'out/index.html').read_text()
    # Of k-NN accuracy, loss, speed: light and dark.
    assert html.count('data:image/png') == 6


def test_runs_that_have_logged_nothing(tmp_path, blank_charts):
    work_dir = tmp_path / 'new'
    (work_dir / 'a' / 'vis_data').mkdir(parents=True)
    Config(dict(model=sop_config())).dump(work_dir / 'a/vis_data/config.py')
    write_comparison(read_runs([work_dir]), tmp_path / 'out')
    text = (tmp_path / 'out/compare.md').read_text()
    assert 'No run has been evaluated yet' in text and 'The configs are equal' in text


def test_configs_of_runs_are_not_executed(tmp_path, blank_charts, capsys):
    """Neither their code nor classes outside the registries; the rest of the page is written."""
    runs = [write_run(tmp_path / name, {0: 0.2}) for name in ('good', 'bad', 'torn')]
    trap = tmp_path / 'code was run'
    for run, text in zip(
        runs[1:],
        (
            f'import os\nos.mkdir({str(trap)!r})\nmodel = dict(type="os.mkdir", path={str(trap)!r})\nlr = 0.5\n',
            'model = dict(',
        ),
        strict=True,
    ):
        next(run.glob('*/vis_data/config.py')).write_text(text)
    write_comparison(read_runs(runs[:2]), tmp_path / 'out')
    costs = {name: run['cost'] for name, run in json.loads((tmp_path / 'out/compare.json').read_text())['runs'].items()}
    assert 'trained parameters' in costs['good'] and 'trained parameters' not in costs['bad']
    assert costs['bad']['iterations'] == 3
    assert "model.type = 'os.mkdir'" in capsys.readouterr().out
    with pytest.raises(WeightsError, match=r'the config in .*torn.*config.py is damaged'):
        read_runs(runs)
    assert not trap.exists()


def test_differences_name_items_by_their_type():
    first = dict(
        a=1, hooks=[dict(type='A', x=1), dict(type='B', x=1)], steps=[dict(type='C', y=1), dict(type='C', y=2)]
    )
    second = dict(a=1, hooks=[dict(type='B', x=2)], steps=[dict(type='C', y=1), dict(type='C', y=3)], new={})
    assert config_differences([first, second]) == {
        'hooks[A].type': ['A', '–'],
        'hooks[A].x': ['1', '–'],
        'hooks[B].x': ['1', '2'],
        'new': ['–', '{}'],
        'steps[1].y': ['2', '3'],
    }
    assert config_differences([first, first]) == {}


def test_bad_runs(tmp_path):
    run = write_run(tmp_path / 'run', {0: 0.1})
    with pytest.raises(FileNotFoundError, match='nowhere is not the work directory of a run'):
        read_runs([run, tmp_path / 'nowhere'])
    with pytest.raises(ValueError, match='twice'):
        read_runs([run, tmp_path / 'run'])
    with pytest.raises(ValueError, match=f'at most {MAX_RUNS}'):
        read_runs([tmp_path / str(number) for number in range(MAX_RUNS + 1)])
