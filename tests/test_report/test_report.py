import copy
import itertools
import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from PIL import Image
from testing.sample_images import write_images
from testing.sop_models import sop_config

from mm_sop.engine.hooks.report_hook import ReportHook
from mm_sop.report import page, report
from mm_sop.report.galleries import build_evaluation_datasets, build_train_dataset
from mm_sop.report.montage import to_png

NAMES = ('<i>cats', 'dogs & co')
run_numbers = itertools.count()


@pytest.fixture(scope='module')
def labeled(tmp_path_factory):
    """Folder `bank` and `test` with a subfolder for each of two classes."""
    folder = tmp_path_factory.mktemp('labeled')
    for split, name in itertools.product(('bank', 'test'), NAMES):
        write_images(folder / split / name, 12, seed=len(split + name), nested=False)
    return folder


@pytest.fixture
def blank_charts(monkeypatch):
    """Replace charts, which take most of the time of a report and are tested elsewhere."""
    blank = to_png(Image.new('RGB', (8, 8)))
    monkeypatch.setattr(page, 'render', lambda draw, theme: blank)


def make_config(work_dir, images, labeled=None, model=None, report_hook=None, epochs=2):
    view = [dict(type='RandomResizedCrop', scale=16), dict(type='RandomFlip', prob=0.5)]
    pipeline = [
        dict(type='LoadImage'),
        dict(type='MultiView', num_views=2, transforms=[view]),
        dict(type='BlockMaskGenerator', grid=(4, 4), mask_ratio=(0.4,), mask_ratio_jitter=(0.1,)),
        dict(type='PackInputs', algorithm_keys=['mask']),
    ]
    plain = [dict(type='LoadImage'), dict(type='Resize', scale=16), dict(type='PackInputs')]
    hooks = [dict(type='ReportHook', **(report_hook or {}))]
    if labeled is not None:
        splits = {
            split: dict(type='LabeledImages', data_root=str(labeled / split), pipeline=plain)
            for split in ('bank', 'test')
        }
        queries = dict(seen=splits['bank'], test=splits['test'])
        hooks.append(dict(type='KNNHook', bank=splits['bank'], queries=queries, num_neighbors=3))
    return Config(
        dict(
            default_scope='mmpretrain',
            model=model or sop_config(),
            data_preprocessor=dict(type='SelfSupDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True),
            work_dir=str(work_dir),
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                collate_fn=dict(type='default_collate'),
                sampler=dict(type='ResumableSampler'),
                dataset=dict(
                    type='SeededDataset',
                    dataset=dict(type='UnlabeledImages', data_root=str(images), pipeline=pipeline),
                ),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
            custom_hooks=hooks,
            default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
            visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
            randomness=dict(seed=0),
            experiment_name=f'report_{next(run_numbers)}',
        )
    )


def run(config):
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def read(work_dir):
    folder = work_dir / 'report'
    return (folder / 'index.html').read_text(), json.loads((folder / 'report.json').read_text())


def titles(page):
    return re.findall('<h2>(.*?)</h2>', page)


def test_report_of_a_run_with_everything(work_dir, images, labeled, monkeypatch, capsys):
    work_dir = work_dir / '<i>run & co'
    runner = run(make_config(work_dir, images, labeled))
    assert all(module.training for module in runner.model.modules())
    page, data = read(work_dir)
    assert titles(page) == [
        'k-nearest neighbors',
        'Training',
        'Anchors and their supports',
        'Nearest neighbors',
        'Where the network looks',
        'Views',
        'Masks',
        'Settings and time',
    ]
    files = {path.name for path in (work_dir / 'report').iterdir()}
    assert files == {*data['files'], 'index.html', 'report.json'}
    assert page.count('data:image/png;base64,') == len(data['files'])
    assert '<i>' not in page and '<h1>SOP · &lt;i&gt;run &amp; co</h1>' in page

    records = {record['iter']: record for record in json.loads((work_dir / 'knn.json').read_text())}
    score = data['scores']['seen_class_k3']
    assert score['before'] == records[0]['scores']['seen_class_k3']
    assert score['after'] == records[6]['scores']['seen_class_k3']
    assert f'{100 * score["after"]["accuracy"]:.1f} ± ' in data['sentence']
    assert data['sentence'] in re.sub('<.*?>', '', page)
    assert data['settings']['algorithm'] == 'SOP' and data['settings']['iterations'] == '6'
    assert data['settings']['images'] == str(images)
    assert set(data['seconds']) == {'training', 'waiting for data', 'evaluation'}

    # The ceiling appears once it has been measured, and the tool draws the same images again.
    ceiling = dict(records[6], network='supervised', iter=None)
    (work_dir / report.CEILING).write_text(json.dumps(ceiling))
    assert 'supervised' not in page
    call_tool(monkeypatch, work_dir)
    again, data_again = read(work_dir)
    assert data_again['galleries'] == data['galleries'] and data_again['scores'] == data['scores']
    assert '<th>supervised</th>' in again
    assert capsys.readouterr().out.strip().endswith(str(work_dir / 'report' / 'index.html'))


def call_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['make_report.py', *map(str, arguments)])
    runpy.run_path(str(Path(__file__).parents[2] / 'tools' / 'make_report.py'), run_name='__main__')


def test_convolutional_network_without_labels(work_dir, images, monkeypatch, blank_charts):
    backbone = dict(type='ResNet', depth=18, base_channels=4, stem_channels=4)
    model = sop_config(mim=False, backbone=backbone)
    model['neck']['in_channels'] = 32
    runner = run(make_config(work_dir, images, model=model, report_hook=dict(interval=1), epochs=1))
    page, data = read(work_dir)
    assert 'Nearest neighbors' not in titles(page) and 'Where the network looks' in titles(page)
    assert data['galleries']['attention']['maps'] == ['similarity']
    assert data['answer'] == 'unknown' and 'Add KNNHook' in page
    assert runner.iter == 3

    checkpoint = work_dir / 'epoch_1.pth'
    (work_dir / 'last_checkpoint').unlink()
    checkpoint.rename(work_dir / 'moved.pth')
    call_tool(monkeypatch, work_dir)
    assert titles(read(work_dir)[0]) == ['k-nearest neighbors', 'Training', 'Images', 'Settings and time']
    call_tool(monkeypatch, work_dir, '--checkpoint', work_dir / 'moved.pth')
    assert 'Where the network looks' in titles(read(work_dir)[0])
    for arguments, message in (
        ([work_dir, '--checkpoint', work_dir / 'none.pth'], 'no checkpoint .*none.pth'),
        ([work_dir / 'report'], 'is not the work directory of a run'),
    ):
        with pytest.raises(SystemExit, match=message):
            call_tool(monkeypatch, *arguments)


def test_configs_and_checkpoints_of_runs_are_not_executed(work_dir, images, monkeypatch, capsys, tmp_path):
    trap = tmp_path / 'code was run'
    config = work_dir / 'a/vis_data/config.py'
    config.parent.mkdir(parents=True)
    hostile = dict(type='os.mkdir', path=str(trap))
    good = make_config(work_dir, images)
    dataset = good.train_dataloader.dataset
    for changes, message in (
        (dict(model=hostile), r"model.type = 'os.mkdir'"),
        ({'model.backbone.norm_cfg': hostile}, r"model.backbone.norm_cfg.type = 'os.mkdir'"),
        ({'train_dataloader.dataset': hostile}, r"train_dataloader.dataset.type = 'os.mkdir'"),
        (
            {'train_dataloader.dataset.dataset.pipeline': [hostile, *dataset.dataset.pipeline]},
            r"pipeline.0.type = 'os.mkdir'",
        ),
        ({'custom_hooks': [dict(type='KNNHook', bank=hostile, queries={})]}, r"custom_hooks.bank.type = 'os.mkdir'"),
        (dict(default_scope='os'), "default_scope = 'os'"),
    ):
        changed = copy.deepcopy(good)
        changed.merge_from_dict(changes)
        values = '\n'.join(f'{name} = {value!r}' for name, value in changed.to_dict().items())
        config.write_text(f'import os\nos.mkdir({str(trap)!r})\n{values}')
        with pytest.raises(SystemExit, match=f'make_report.py: .*{message}'):
            call_tool(monkeypatch, work_dir)
    good.dump(config)
    state = MODELS.build(dict(good.model, data_preprocessor=good.data_preprocessor)).state_dict()
    torch.save(dict(state_dict=state, hook=Code()), work_dir / 'iter_1.pth')
    with pytest.raises(SystemExit, match=r'make_report.py: .*iter_1.pth cannot be read: .*--trust'):
        call_tool(monkeypatch, work_dir, '--checkpoint', work_dir / 'iter_1.pth')
    assert 'code was run' not in capsys.readouterr().out and not trap.exists()


class Code:
    def __reduce__(self):
        return (print, ('code was run',))


def test_training_is_not_disturbed(work_dir, images, labeled, blank_charts):
    """Drop path draws random numbers in every step, so any disturbance would change the weights."""
    weights = []
    for name, interval in (('often', 1), ('once', None)):
        model = sop_config()
        model['backbone']['drop_path_rate'] = 0.5
        config = make_config(work_dir / name, images, labeled, model=model, report_hook=dict(interval=interval))
        weights.append(run(config).model.state_dict())
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_failing_report_is_only_an_error_in_the_log(work_dir, images, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError('no space for images')

    monkeypatch.setattr('mm_sop.report.report.write_report', fail)
    run(make_config(work_dir, images, epochs=1))
    log = next(work_dir.glob('*/*.log')).read_text()
    assert 'no space for images' in log and f'python tools/make_report.py {work_dir}' in log
    assert not (work_dir / 'report').exists()


def test_older_report_stays_until_the_new_one_is_complete(work_dir, monkeypatch):
    page = report.write_report(work_dir, Config())
    (page.parent / 'gone.png').write_bytes(b'1')
    page.write_text('old')

    def fail(source, target):
        raise OSError('disk')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk'):
        report.write_report(work_dir, Config())
    assert page.read_text() == 'old'
    monkeypatch.undo()
    report.write_report(work_dir, Config())
    assert {path.name for path in page.parent.iterdir()} == {'index.html', 'report.json'} and page.read_text() != 'old'
    assert [path.name for path in work_dir.iterdir()] == ['report']


def test_datasets_of_the_galleries(images, labeled):
    config = make_config('unused', images, labeled)
    train = build_train_dataset(config)
    assert torch.equal(train[3]['inputs'][0], build_train_dataset(config)[3]['inputs'][0])
    bank, queries = build_evaluation_datasets(config, train)
    assert (bank.data_root, queries.data_root) == (str(labeled / 'bank'), str(labeled / 'test'))
    config.custom_hooks = []
    plain, nothing = build_evaluation_datasets(config, train)
    assert nothing is None and len(plain) == 12
    assert plain[0]['inputs'].shape == (3, 16, 16) and torch.equal(plain[0]['inputs'], plain[0]['inputs'])
    config.train_dataloader = None
    assert build_train_dataset(config) is None
    with pytest.raises(ValueError, match='neither a KNNHook nor a train_dataloader'):
        build_evaluation_datasets(config, None)


def test_bad_interval():
    with pytest.raises(ValueError, match='interval of ReportHook must be at least 1 or None, got 0'):
        ReportHook(interval=0)
