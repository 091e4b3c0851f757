"""Comparison of initializations downstream; training itself is replaced."""

import json
import sys

import pytest
from mmengine.config import Config
from PIL import Image
from testing.pages import read_page


@pytest.fixture
def downstream(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / 'tools/benchmarks'))
    import downstream_on_composites

    return downstream_on_composites


class FakeTraining:
    """Logs what a run logs: scores that grow over two evaluations and with the seed, and more with weights."""

    def __init__(self):
        self.commands = []

    def __call__(self, command, log):
        command = [str(part) for part in command]
        self.commands.append(command)
        gain = 0.0 if 'none' in command else 10.0
        seed = int(command[command.index('--seed') + 1])
        scalars = log.parent / '20260101_000000/vis_data/scalars.json'
        scalars.parent.mkdir(parents=True)
        lines = []
        for step in (100, 200):
            percent = step / 10 + gain + seed * (1 + gain / 10)
            lines.append(
                {'mIoU': percent, 'coco/bbox_mAP': percent / 100, 'coco/segm_mAP': percent / 200, 'step': step}
            )
        scalars.write_text('\n'.join(map(json.dumps, lines)))
        return 120.0


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / 'sop.pth').write_bytes(b'weights')
    return [f'SOP={tmp_path}/sop.pth', '--seeds', '0', '1', '2', '--jobs', '1', '--work-dir', str(tmp_path / 'runs'),
            '--out', str(tmp_path / 'out.json')]  # fmt: skip


def run(downstream, monkeypatch, arguments):
    monkeypatch.setattr(sys, 'argv', ['downstream_on_composites.py', *arguments])
    args = downstream.parse_args()
    runs = downstream.Downstream(args)
    runs.train()
    downstream.write_report(runs.report(), args.out)
    return json.loads(args.out.read_text()), read_page(args.out)


def test_initializations_are_compared_seed_by_seed(downstream, monkeypatch, tmp_path, arguments, capsys):
    training = FakeTraining()
    monkeypatch.setattr('composites_runs.run_command', training)
    report, page = run(downstream, monkeypatch, arguments)
    assert len(training.commands) == 3 * 2 * 3
    starts = {command[command.index('--pretrained') + 1] for command in training.commands}
    assert starts == {'none', str(tmp_path / 'sop.pth')}

    boxes = report['results']['detection']['scores']['coco/bbox_mAP']
    assert boxes['scratch']['values'] == pytest.approx([20, 21, 22])
    assert boxes['SOP']['values'] == pytest.approx([30, 32, 34])
    assert boxes['SOP']['deviation'] == pytest.approx(2)
    # Differences 10, 11 and 12 have an std of 1.
    assert boxes['SOP']['gain'] == pytest.approx(dict(mean=11, standard_error=3**-0.5))
    assert boxes['SOP']['curves'][1] == [[100, 200], pytest.approx([22, 32])]
    masks = report['results']['detection']['scores']['coco/segm_mAP']
    assert masks['SOP']['values'] == pytest.approx([15, 16, 17])
    assert '| scratch | 21.0 ± 1.0 | | 10.5 ± 0.5 | | 2.0 |' in page
    assert '| SOP | 32.0 ± 2.0 | +11.0 ± 0.6 | 16.0 ± 1.0 | +5.5 ± 0.3 | 2.0 |' in page
    assert report['checkpoints']['SOP']['file'] == 'sop.pth'
    assert Image.open(tmp_path / 'out.png').size[0] > 1000

    run(downstream, monkeypatch, arguments)
    assert len(training.commands) == 3 * 2 * 3, 'finished runs are kept'


def test_results_of_another_schedule_are_not_mixed_in(downstream, monkeypatch, arguments):
    monkeypatch.setattr('composites_runs.run_command', FakeTraining())
    run(downstream, monkeypatch, [*arguments, '--tasks', 'segmentation-fpn'])
    with pytest.raises(SystemExit, match=r'max_epochs=4.*max_epochs=7.*choose another --work-dir'):
        run(downstream, monkeypatch, [*arguments, '--tasks', 'segmentation-fpn', '--epochs', '7'])


def test_a_single_seed_has_no_deviation(downstream, monkeypatch, arguments):
    monkeypatch.setattr('composites_runs.run_command', FakeTraining())
    arguments[2:5] = ['0']
    _, page = run(downstream, monkeypatch, [*arguments, '--tasks', 'segmentation-linear'])
    assert '| SOP | 30.0 | +10.0 | 2.0 |' in page


@pytest.mark.parametrize('checkpoint', ['SOP', 'SOP=missing.pth', 'scratch={}/sop.pth', '={}/sop.pth'])
def test_checkpoints_need_a_name_and_a_file(downstream, monkeypatch, tmp_path, arguments, capsys, checkpoint):
    monkeypatch.setattr(sys, 'argv', ['downstream_on_composites.py', checkpoint.format(tmp_path)])
    with pytest.raises(SystemExit):
        downstream.parse_args()
    assert 'NAME=CHECKPOINT' in capsys.readouterr().err


def test_every_task_starts_from_the_same_backbone(downstream, repository):
    pretrained = Config.fromfile(repository / 'configs/sop/r18_composites.py').model.backbone
    for task in downstream.TASKS.values():
        config = Config.fromfile(repository / 'configs' / task.config)
        backbone = {key: value for key, value in config.model.backbone.items() if key != 'out_indices'}
        assert dict(backbone, type=backbone['type'].split('.')[-1]) == dict(pretrained)
        assert config.model.init_cfg.type == 'PretrainedBackbone'


def test_nothing_has_no_sign(downstream):
    assert downstream.format_number(-0.04, 0.62, '+') == '+0.0 ± 0.6'
