"""From training to predictions, with the commands of the README."""

import json
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from testing.detection_data import SIZE, write_coco

from mm_sop.engine.detection import format_result
from mm_sop.report.predictions import draw_detections


@pytest.fixture(scope='module')
def scenes(tmp_path_factory, repository):
    folder = tmp_path_factory.mktemp('scenes')
    classes = Config.fromfile(repository / 'configs/_base_/datasets/composites_scenes.py').metainfo.classes
    for split in ('train', 'val'):
        write_coco(folder, classes, f'annotations/instances_{split}.json', split, num_images=4)
    return folder


@pytest.fixture(scope='module')
def run(repository):
    """Call a script as from the command line, in this process."""

    def call(name, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, 'argv', [name, *map(str, arguments)])
            runpy.run_path(str(repository / 'tools' / name), run_name='__main__')

    return call


@pytest.fixture(scope='module')
def config(repository):
    return repository / 'configs/detection/mask-rcnn_r18_fpn_composites.py'


@pytest.fixture(scope='module')
def checkpoint(run, config, scenes, tmp_path_factory):
    """A detector after two iterations; not to be changed."""
    work_dir = tmp_path_factory.mktemp('detector')
    small = ['train_dataloader.batch_size=2', 'train_cfg.max_iters=2', 'log_level=ERROR']
    for loader in ('train', 'val'):
        small += [f'{loader}_dataloader.num_workers=0', f'{loader}_dataloader.persistent_workers=False']
    options = ['--data', scenes, '--work-dir', work_dir]
    run('train.py', config, *options, '--pretrained', 'none', '--cfg-options', *small)
    return work_dir / 'iter_2.pth'


def test_train_test_detect(run, config, checkpoint, scenes, work_dir):
    loader = ['test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']
    run('test.py', config, checkpoint, '--data', scenes, '--cfg-options', *loader)
    result = json.loads((checkpoint.parent / 'test/iter_2.json').read_text())
    assert result['images'] == 4 and len(result['checkpoint_sha256']) == 64
    assert {'coco/bbox_mAP', 'coco/segm_mAP_50'} <= result['metrics'].keys()
    assert '| masks | ' in (checkpoint.parent / 'test/iter_2.md').read_text()

    (work_dir / 'more').mkdir()
    copied = [shutil.copy(scenes / 'val/2.png', work_dir / f'more/{name}.png') for name in ('2', '2_1')]
    run('detect.py', checkpoint, scenes / 'val/2.png', *copied, '--out', work_dir / 'triplets')
    names = ['2_1.png', '2_2.png', '2_3.png']
    assert sorted(path.name for path in (work_dir / 'triplets').glob('*.png')) == names

    images = [scenes / 'val/0.png', scenes / 'val/2.png']
    run('detect.py', checkpoint, *images, '--out', work_dir / 'drawn', '--min-score', 0)
    detections = json.loads((work_dir / 'drawn/detections.json').read_text())
    assert list(detections) == [str(path) for path in images]
    assert Image.open(work_dir / 'drawn/2.png').size == (640, 427)
    for objects in detections.values():
        scores = [item['score'] for item in objects]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= value <= SIZE[0] for item in objects for value in item['box'][::2])


class Code:
    def __reduce__(self):
        return (print, ('code was run',))


def test_trust_and_unreadable_images(run, config, checkpoint, scenes, work_dir, capsys):
    content = torch.load(checkpoint, weights_only=False)
    # As in the configs for COCO, whose loader returns None for bad files.
    content['meta']['cfg'] = content['meta']['cfg'].replace('mmpretrain.LoadImage', 'LoadImageFromFile')
    assert 'LoadImageFromFile' in content['meta']['cfg']
    torch.save(dict(content, hook=Code()), work_dir / 'code.pth')
    (work_dir / 'no.jpg').write_bytes(b'no image')
    images = [work_dir / 'no.jpg', scenes / 'val/0.png', work_dir / 'missing.jpg', scenes / 'val/2.png']
    loader = ['test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']
    tests = ('test.py', config, work_dir / 'code.pth', '--data', scenes, '--cfg-options', *loader)
    for script, *arguments in (tests, ('detect.py', work_dir / 'code.pth', *images, '--out', work_dir / 'drawn')):
        with pytest.raises(SystemExit, match=f'{script}: .* would run code'):
            run(script, *arguments)
    assert 'code was run' not in capsys.readouterr().out
    run(*tests[:3], '--trust', *tests[3:])
    assert capsys.readouterr().out.count('code was run') == 1
    with pytest.raises(SystemExit, match=r'2 of the images cannot be read: .*no.jpg, .*missing.jpg'):
        run('detect.py', work_dir / 'code.pth', *images, '--out', work_dir / 'drawn', '--trust')
    output = capsys.readouterr()
    assert output.out.count('code was run') == 1
    assert 'detect.py: skipped' in output.err and 'no.jpg: not an image' in output.err
    assert sorted(path.name for path in (work_dir / 'drawn').iterdir()) == ['0.png', '2.png', 'detections.json']
    assert list(json.loads((work_dir / 'drawn/detections.json').read_text())) == [str(images[1]), str(images[3])]


def test_bad_images_checkpoints_and_annotations_are_named(run, config, checkpoint, scenes, work_dir, repository):
    (work_dir / 'no.jpg').write_bytes(b'no image')
    with pytest.raises(SystemExit, match=r'detect.py: .*no.jpg'):
        run('detect.py', checkpoint, work_dir / 'no.jpg', '--out', work_dir / 'drawn')
    content = torch.load(checkpoint, weights_only=False)
    content['state_dict'].pop('backbone.conv1.weight')
    torch.save(content, work_dir / 'partial.pth')
    partial = work_dir / 'partial.pth'
    for script, *arguments in (('test.py', config, partial, '--data', scenes), ('detect.py', partial, 'x')):
        with pytest.raises(SystemExit, match=r'missing +backbone.conv1.weight'):
            run(script, *arguments)
    annotations = json.loads((scenes / 'annotations/instances_val.json').read_text())
    annotations['categories'].reverse()
    (scenes / 'annotations/reversed.json').write_text(json.dumps(annotations))
    with pytest.raises(SystemExit, match=r'test.py: .*reversed.json'):
        option = 'test_dataloader.dataset.ann_file=annotations/reversed.json'
        run('test.py', config, checkpoint, '--data', scenes, '--cfg-options', option)
    with pytest.raises(SystemExit, match=r'test.py: .*r18_composites.py has no test_dataloader'):
        run('test.py', repository / 'configs/sop/r18_composites.py', checkpoint)


def test_training_without_checkpoint_is_refused(run, config, scenes, work_dir):
    with pytest.raises(SystemExit, match='train.py: .*--pretrained none to train from scratch'):
        run(
            'train.py',
            config,
            '--data',
            scenes,
            '--work-dir',
            work_dir,
            '--cfg-options',
            'train_dataloader.batch_size=2',
        )


def test_table():
    metrics = {'coco/bbox_mAP': 0.1234, 'coco/bbox_mAP_50': 0.5, 'coco/bbox_mAP_l': -1.0, 'coco/segm_mAP': 0.2}
    text = format_result(dict(config='c.py', checkpoint='x.pth', images=3, metrics=metrics))
    assert '| boxes | 12.3 | 50.0 | – | – | – | – |' in text
    assert '| masks | 20.0 |' in text
    voc = format_result(dict(config='c.py', checkpoint='x.pth', images=3, metrics={'pascal_voc/AP50': 0.25}))
    assert '| pascal_voc/AP50 | 0.25 |' in voc


def test_drawing():
    image = np.full((40, 80, 3), 255, np.uint8)
    mask = np.zeros((40, 80), bool)
    mask[10:20, 20:40] = True
    item = dict(score=0.9, box=[20, 10, 40, 20], mask=mask) | {'class': 'b'}
    drawing = np.asarray(draw_detections(image, [item], ('a', 'b'), min_side=160))
    assert drawing.shape == (80, 160, 3)
    assert tuple(drawing[30, 60]) not in ((255, 255, 255), (0, 0, 0))
    # The outline has the color of the second class, pixels far away stay white.
    assert tuple(drawing[30, 40]) == (0xD5, 0x5E, 0x00)
    assert (drawing[60:] == 255).all()
    assert (np.asarray(draw_detections(image, [], ('a',))) == 255).all()
