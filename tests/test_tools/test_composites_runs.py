"""The harness of benchmarks that compare training runs; training itself is replaced."""

import argparse
import importlib
import json
import sys

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.config import Config, DictAction
from mmpretrain.registry import MODELS
from testing.pages import read_page

from mm_sop.demo import CompositeSettings, classification
from mm_sop.demo.assets import Assets
from mm_sop.evaluation.classification.knn_records import KNNRecords
from mm_sop.utils.config import merge_options


@pytest.fixture
def runs(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / 'tools/benchmarks'))
    import composites_runs

    return composites_runs


@pytest.mark.parametrize(('script', 'variants'), [('sop_trials', 'TRIALS'), ('methods_on_composites', 'METHODS')])
def test_every_variant_builds_a_model_and_a_pipeline(runs, repository, script, variants):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    for variant in getattr(importlib.import_module(script), variants).values():
        config = Config.fromfile(repository / 'configs' / variant.config)
        options = ['--cfg-options', *variant.options] if variant.options else []
        merge_options(config, parser.parse_args(options).cfg_options)
        MODELS.build(dict(config.model, data_preprocessor=config.data_preprocessor))
        Compose(config.train_dataloader.dataset.dataset.pipeline)


class FakeTraining:
    """Writes what a run leaves; the accuracy depends on the config and grows with the seed."""

    def __init__(self):
        self.commands = []
        self.accuracy = {'base.py': 5, 'better.py': 7}

    def __call__(self, command, log):
        command = [str(part) for part in command]
        self.commands.append(command)
        records = KNNRecords(command[command.index('--work-dir') + 1])
        right = self.accuracy[command[2].rsplit('/', 1)[1]] + int(command[command.index('--seed') + 1])
        for iteration, correct in ((None, 2), (0, 1), (10, right)):
            score = dict(accuracy=correct / 20, right_by_identity=[correct, 0], images_by_identity=[10, 10])
            scores = dict(seen_class_k20=dict(score, standard_error=0.1))
            network = 'raw_pixels' if iteration is None else 'teacher'
            log.parent.mkdir(parents=True, exist_ok=True)
            records.add(dict(network=network, iter=iteration, epoch=None, seconds=1.0, scores=scores))
        return 60.0 * len(self.commands)


def test_runs_are_made_once_and_compared(runs, monkeypatch, tmp_path, capsys):
    training = FakeTraining()
    monkeypatch.setattr(runs, 'run_command', training)
    variants = {
        'Better one': runs.Variant('better.py', ('a=1',), base='Base', prepare=lambda folder, config: [f'b={folder}']),
        'Base': runs.Variant('base.py'),
    }
    arguments = ['script', '--seeds', '0', '1', '--epochs', '3', '--jobs', '1', '--work-dir', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', [*arguments, '--out', str(tmp_path / 'out.json')])
    args = runs.parse_args(variants, 'test', '')
    comparison = runs.Comparison(variants, args)
    comparison.train()
    assert [command[2].rsplit('/', 1)[1] for command in training.commands] == ['base.py'] * 2 + ['better.py'] * 2
    options = training.commands[3][training.commands[3].index('--cfg-options') + 1 :]
    assert options == [
        'train_cfg.max_epochs=3', 'train_dataloader.batch_size=128', 'a=1', f'b={tmp_path}/base_s1'
    ]  # fmt: skip

    comparison.train()
    assert len(training.commands) == 4
    runs.write_report(comparison.report(), args.out, 'Title', 'Explanation.\n')
    report = json.loads(args.out.read_text())
    gain = report['results']['Better one']['gain_over_base']['seen_class_k20']
    assert gain['gain'] == pytest.approx(2 / 20)
    page = read_page(args.out)
    assert '| Base | 27.5 ± 3.5 | 1.0 (1.5 ± 0.7) |' in page
    assert '| *raw pixels* | 10.0 ± 0.0 | |' in page
    assert args.out.with_suffix('.png').read_bytes()[:4] == b'\x89PNG'


def test_pairs_are_judged_by_the_objects_that_were_drawn(runs, monkeypatch, tmp_path):
    import methods_on_composites
    from testing.composite_assets import make_assets

    assets = Assets.load(make_assets(tmp_path))
    drawn = []
    pasted = classification.compose
    monkeypatch.setattr(
        classification, 'compose', lambda cutouts, *args: drawn.append(cutouts[0]) or pasted(cutouts, *args)
    )
    images = classification.PretrainSet(CompositeSettings(), assets)
    for index in range(12):
        images.render(index, tmp_path)
    pairs = [(first, second) for first in range(12) for second in range(first)]
    np.savez(tmp_path / 'pairs.npz', pairs=pairs)
    shares = methods_on_composites.judge_pairs([tmp_path / 'pairs.json'], assets)
    for name, key in (('same class', 'label'), ('same object', 'name')):
        right = [getattr(drawn[first], key) == getattr(drawn[second], key) for first, second in pairs]
        assert 0 < shares[name]['mean'] == pytest.approx(np.mean(right))


def test_a_variant_needs_its_base(runs, monkeypatch, capsys):
    variants = {'a': runs.Variant('a.py'), 'b': runs.Variant('b.py', base='a', prepare=lambda folder, config: [])}
    monkeypatch.setattr(sys, 'argv', ['script', '--names', 'b'])
    with pytest.raises(SystemExit):
        runs.parse_args(variants, 'test', '')
    assert 'add a to --names' in capsys.readouterr().err


def test_a_failed_command_names_its_log(runs, tmp_path):
    with pytest.raises(SystemExit, match=r'code 3, see .*log\.txt'):
        runs.run_command([sys.executable, '-c', 'print(7); raise SystemExit(3)'], tmp_path / 'log.txt')
    assert (tmp_path / 'log.txt').read_text() == '7\n'


def test_seeds_are_joined_beside_a_control(runs, monkeypatch, tmp_path):
    import compare_seeds

    training = FakeTraining()
    for seed, config in enumerate(('better.py', 'better.py', 'base.py')):
        command = ['python', 'train.py', f'configs/{config}', '--seed', seed % 2, '--work-dir', tmp_path / str(seed)]
        training(command, tmp_path / 'log.txt')
    out = tmp_path / 'out'
    arguments = [out, tmp_path / '0', tmp_path / '1', '--control', 'old', tmp_path / '2']
    monkeypatch.setattr(sys, 'argv', ['compare_seeds.py', *map(str, arguments)])
    compare_seeds.main()
    page = read_page(out)
    assert '| | raw pixels | untrained | trained | old |' in page
    assert '| seen class, k = 20 | 10.0 ± 0.0 | 5.0 ± 0.0 | 37.5 ± 3.5 | 25.0 ± 0.0 |' in page
    gain = json.loads(out.with_suffix('.json').read_text())['scores']['seen_class_k20']['gains']['old']
    assert gain['gain'] == pytest.approx((2 + 3) / 2 / 20)
    assert out.with_suffix('.png').stat().st_size > 1000
