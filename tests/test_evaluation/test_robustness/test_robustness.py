"""Robustness protocol on folders with images of three colors."""

import json
import shutil
from functools import cache
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.registry import init_default_scope
from PIL import Image
from testing.distributed import run_distributed
from testing.evaluation_encoders import make_context, write_classes
from torch import nn

from mm_sop.datasets.labeled.folders import LabeledImages
from mm_sop.datasets.transforms.corruptions import ALEXNET_ERRORS, CORRUPTIONS
from mm_sop.datasets.transforms.evaluation import EvaluationTransform
from mm_sop.encoders.encoder import Encoder, EncoderSpecification
from mm_sop.evaluation import context as context_module
from mm_sop.evaluation.classification.logistic import FrozenClassifiers
from mm_sop.evaluation.features.attention import cls_attention
from mm_sop.evaluation.labeled_data import class_labels
from mm_sop.evaluation.robustness import disturbances, perturbed_data, robustness
from mm_sop.evaluation.robustness.disturbances import (
    GuidedOcclusion,
    InternalCorruption,
    PixelAttack,
    batch_labels,
    normalize_pixels,
    to_pixels,
)
from mm_sop.evaluation.robustness.perturbed_data import find_backgrounds, find_corrupted, match_classes, perturb_dataset
from mm_sop.evaluation.robustness.robustness import RobustnessProtocol
from mm_sop.models.utils.readout import read_out
from mm_sop.report.evaluation import draw
from mm_sop.report.robustness import corruption_chart
from mm_sop.report.style import LIGHT, chart_style

TRANSFORM = EvaluationTransform(32)
FEW = ('gaussian_noise', 'glass_blur', 'fog')
QUICK = dict(
    num_neighbors=5, occluded=(0.0, 1.0), shuffled=(1, 4), dropped=(0.0, 0.9), noises=(0.0, 50.0), repeats=2,
    epsilons=(0.0, 0.3), step_sizes=(0.2,), steps=(1, 8),
)  # fmt: skip


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Training and validation images of three classes, and tiny ImageNet-9 and -A folders."""
    folder = tmp_path_factory.mktemp('data')
    write_classes(folder / 'train', 10)
    write_classes(folder / 'val', 4, seed=1)
    for variant in ('original', 'mixed_same'):
        write_classes(folder / f'backgrounds/{variant}/val', 3, seed=2)
    # Images of the same names that show another class.
    for name, other in (('blue', 'green'), ('green', 'red'), ('red', 'blue')):
        for path in sorted((folder / f'backgrounds/original/val/{other}').iterdir()):
            target = folder / f'backgrounds/mixed_rand/val/{name}' / path.name.replace(other, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    write_classes(folder / 'imagenet-a', 2, classes=('blue', 'green'), seed=3)
    return folder


def write_corrupted(folder, families=True):
    """Black images at severity 5, one-colored ones otherwise, in the layout of ImageNet-C."""
    for kind in FEW:
        for severity in range(1, 6):
            for channel, name in enumerate(('red', 'green', 'blue')):
                pixels = np.zeros((32, 32, 3), np.uint8)
                pixels[..., channel] = 0 if severity == 5 else 220
                path = folder / (CORRUPTIONS[kind].family if families else '') / kind / str(severity) / name / 'a.png'
                path.parent.mkdir(parents=True)
                Image.fromarray(pixels).save(path)


def run(context):
    protocol = RobustnessProtocol(**QUICK)
    return protocol.run(context, protocol.find_data(context))


def run_some(context):
    """Run with three corruptions."""
    kinds = {name: CORRUPTIONS[name] for name in FEW}
    with (
        patch.object(perturbed_data, 'CORRUPTIONS', kinds),
        patch.object(robustness, 'CORRUPTIONS', kinds),
    ):
        return run(context)


def make_color_context(data, work_dir):
    """Context with a network that gives the colors of 4 x 4 cells."""
    context = make_context(data, work_dir)
    network = nn.Conv2d(3, 3, 8, stride=8, bias=False)
    network.weight.data = torch.eye(3)[..., None, None].expand(3, 3, 8, 8) / 64
    origin = dict(checkpoint='colors.pth', checkpoint_sha256='')
    context.encoder = Encoder(network, EncoderSpecification(None, (120.0,) * 3, (60.0,) * 3, origin=origin))
    return context


@pytest.fixture
def result(data, seed):
    """One run for all tests; transforms are found by name only within a test."""
    return run_once(data, seed)


@cache
def run_once(data, seed):
    context = make_color_context(data, data / 'work')
    context.seed = seed
    return run(context)


def test_undisturbed_levels_equal_clean_accuracy(result):
    found = result.card['accuracies']
    clean = found['clean']['0']
    assert found['occlusion']['0.0'] == clean and found['shuffle']['1'] == clean
    for kind in ('dropped_cells', 'zeroed_cells', 'dropped_block', 'attack_1x0.2', 'attack_8x0.2'):
        assert found[kind][next(iter(found[kind]))]['linear'] == pytest.approx(clean['linear'])
    assert found['map_noise']['0.0']['linear'] == pytest.approx(clean['linear'])


@pytest.mark.learning
def test_disturbances_harm(result, expect):
    found = result.card['accuracies']
    expect('clean accuracy', found['clean']['0']['linear'], above=0.7)
    assert found['occlusion']['1.0'] == pytest.approx(dict(knn=1 / 3, linear=1 / 3))
    expect('accuracy under attack', found['attack_8x0.2']['0.3']['linear'], below=0.2)
    expect('accuracy with noise', found['map_noise']['50.0']['linear'], below=0.8)


@pytest.mark.learning
def test_swapped_backgrounds_and_other_sets(result, expect):
    scores = {name: score.value for name, score in result.scores.items()}
    assert scores['background_mixed_same_linear'] == scores['background_original_linear']
    expect('accuracy on original backgrounds', scores['background_original_linear'], above=0.6)
    expect('accuracy on swapped backgrounds', scores['background_mixed_rand_linear'], below=0.3)
    gap = scores['background_mixed_same_linear'] - scores['background_mixed_rand_linear']
    assert scores['background_gap_linear'] == pytest.approx(gap)
    expect('accuracy on ImageNet-A', scores['imagenet_a_linear'], above=0.6)


def test_scores_are_means_over_levels(result):
    found, scores = result.card['accuracies'], result.scores
    for classifier in ('knn', 'linear'):
        everything = [each[classifier] for kind in CORRUPTIONS for each in found[kind].values()]
        assert len(everything) == 75
        assert scores[f'corrupted_{classifier}'].value == pytest.approx(np.mean(everything))
        blur = [each[classifier] for kind in CORRUPTIONS if 'blur' in kind for each in found[kind].values()]
        assert scores[f'blur_{classifier}'].value == pytest.approx(np.mean(blur))
    attacks = [each['linear'] for kind in ('attack_1x0.2', 'attack_8x0.2') for each in found[kind].values()]
    assert len(attacks) == 4 and scores['attack_average_linear'].value == pytest.approx(np.mean(attacks))
    assert result.card['corruptions'] == 'generated'
    assert result.card['missing'][:2] == ['imagenet-c', 'backgrounds/mixed_next']
    names = {image.name for image in draw('robustness', result.data)}
    assert names == {'corruptions', 'occlusion', 'shuffle', 'internal', 'noise', 'attack', 'backgrounds', 'disturbed'}


def test_stored_corruptions_are_read(data, tmp_path):
    for name in ('train', 'val'):
        (tmp_path / name).symlink_to(data / name)
    write_corrupted(tmp_path / 'imagenet-c')
    found = run_some(make_color_context(tmp_path, tmp_path / 'work')).card
    assert found['corruptions'] == 'read' and 'background' not in found['accuracies']
    for kind in FEW:
        levels = found['accuracies'][kind]
        assert levels['1'] == levels['4'] and levels['5'] == pytest.approx(dict(knn=1 / 3, linear=1 / 3))


def test_layouts_of_imagenet_c(tmp_path, monkeypatch):
    monkeypatch.setattr(perturbed_data, 'CORRUPTIONS', FEW)
    write_corrupted(tmp_path, families=False)
    assert [len(each) for each in find_corrupted(tmp_path, TRANSFORM)['fog']] == [3] * 5
    shutil.rmtree(tmp_path / 'fog/4')
    assert list(find_corrupted(tmp_path, TRANSFORM)) == ['gaussian_noise', 'glass_blur']


def test_backgrounds_without_an_original(data, tmp_path):
    assert list(find_backgrounds(data / 'backgrounds', TRANSFORM)) == ['original', 'mixed_same', 'mixed_rand']
    shutil.copytree(data / 'backgrounds/mixed_rand', tmp_path / 'mixed_rand')
    assert list(find_backgrounds(tmp_path, TRANSFORM)) == ['mixed_rand']


def test_sets_in_part_are_used_and_what_is_missing_is_named(data, tmp_path):
    for name in ('train', 'val'):
        (tmp_path / name).symlink_to(data / name)
    write_corrupted(tmp_path / 'imagenet-c')
    shutil.rmtree(tmp_path / 'imagenet-c/weather/fog/4')
    shutil.copytree(data / 'backgrounds/mixed_rand', tmp_path / 'backgrounds/mixed_rand')
    result = run_some(make_color_context(tmp_path, tmp_path / 'work'))
    missing = result.card['missing']
    assert missing[0] == 'imagenet-c/fog' and 'backgrounds/original' in missing and missing[-1] == 'imagenet-a'
    assert not {'imagenet-c', 'imagenet-c/glass_blur', 'backgrounds/mixed_rand'} & set(missing)
    assert 'fog' not in result.card['accuracies'] and len(result.card['accuracies']['glass_blur']) == 5
    assert {'blur_linear', 'noise_knn', 'background_mixed_rand_knn'} <= set(result.scores)
    assert not {'corrupted_linear', 'weather_linear', 'background_gap_linear'} & set(result.scores)
    kinds = {kind: levels for kind, levels in result.card['accuracies'].items() if kind != 'fog'}
    with chart_style(LIGHT):
        figure = corruption_chart(kinds, LIGHT)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ['gaussian noise', 'glass blur']


def test_features_of_an_older_version_are_ignored(data, tmp_path):
    context = make_color_context(data, tmp_path)
    protocol, counts = RobustnessProtocol(**QUICK), []
    found = protocol.find_data(context)
    labels = class_labels(found['train'])
    classifiers = FrozenClassifiers(context.features(found['train']), labels, 5)
    for version in (1, 1, 2):
        judge = robustness._Judge(context, found, classifiers, version)
        judge.classify(found['test'], {})
        judge.perturb('shuffle', (1, 4))
        counts.append(len(list(context.cache.folder.iterdir())))
    assert counts == [3, 3, 4]


def named(*classes):
    return SimpleNamespace(metainfo=dict(classes=classes), data_root='set')


def test_classes_are_matched_by_name_or_table(tmp_path):
    train = named('cat', 'dog', 'emu', 'fox')
    assert match_classes(named('fox', 'cat'), train).tolist() == [1, -1, -1, 0]
    file_list = tmp_path / 'in_to_in9.json'
    assert match_classes(named('fox', 'cat'), train, file_list).tolist() == [1, -1, -1, 0]
    file_list.write_text(json.dumps({'0': 1, '1': 1, '2': -1, '3': 0}))
    assert match_classes(named('00_canine', '01_pet'), train, file_list).tolist() == [1, 1, -1, 0]
    with pytest.raises(ValueError, match='class gnu of set is none of the 4 training classes'):
        match_classes(named('cat', 'gnu'), train)


def test_answers_are_mapped_or_restricted():
    features = torch.eye(4).repeat(3, 1)
    classifiers = FrozenClassifiers(features, torch.arange(4).repeat(3), num_neighbors=99)
    assert classifiers.num_neighbors == 12
    queries = torch.eye(4)[[0, 1, 3]] + 0.1 * torch.eye(4)[[1, 2, 2]]
    groups = np.array([7, -1, 5, 7])
    assert classifiers.predict(queries)['linear'].tolist() == [0, 1, 3]
    for answers in (classifiers.predict(queries, groups)[name].tolist() for name in ('knn', 'linear')):
        assert answers == [7, -1, 7]
    assert classifiers.predict(queries, groups, restrict=True)['linear'].tolist() == [7, 5, 7]


def test_linear_head_is_that_of_standardized_features():
    features, labels = 5 + 3 * torch.randn(60, 4) * torch.tensor([1.0, 10.0, 0.1, 0.0]), torch.arange(60) % 3
    first = FrozenClassifiers(features, labels).logits(features)
    moved = FrozenClassifiers(2 * features - 7, labels).logits(2 * features - 7)
    torch.testing.assert_close(first, moved, atol=1e-3, rtol=1e-3)


@pytest.fixture
def setting(data, tmp_path):
    context = make_context(data, tmp_path, kind='transformer')
    train, test = (LabeledImages(data / name, context.transform.steps) for name in ('train', 'val'))
    labels = torch.tensor([train.get_data_info(row)['gt_label'] for row in range(len(train))])
    classifiers = {name: FrozenClassifiers(context.features(train, name), labels) for name in ('global', 'patch')}
    return context, test, classifiers


def make_disturbances(context, classifiers):
    inside = InternalCorruption(context.encoder, classifiers['patch'], (0.5, 0.9), (1.0,), repeats=2)
    attack = PixelAttack(context.encoder, classifiers['global'], (0.01, 0.05), (0.5,), (2,))
    network = context.encoder.network
    attend = lambda pixels: cls_attention(network, normalize_pixels(context.encoder, pixels))  # noqa: E731
    return inside, attack, GuidedOcclusion(context.encoder, classifiers['global'], attend, (0.3, 0.7))


def test_disturbances_do_not_depend_on_the_batch(setting):
    context, test, classifiers = setting
    for disturbance in make_disturbances(context, classifiers):
        context.batch_size = 12
        whole = context.map_images(test, disturbance, 'right')
        context.batch_size = 5
        for kind, right in context.map_images(test, disturbance, 'right').items():
            assert torch.equal(right, whole[kind])


def test_interrupted_attacks_are_resumed(setting, tmp_path, monkeypatch):
    context, test, classifiers = setting
    monkeypatch.setattr(context_module, '_BLOCK', 4)
    attack = make_disturbances(context, classifiers)[1]
    straight = context.map_images(test, attack, 'attack')
    pgd_attack, attacked = disturbances.pgd_attack, []

    def count(logits, pixels, *args):
        if len(attacked) == 4:
            raise KeyboardInterrupt
        attacked.append(len(pixels))
        return pgd_attack(logits, pixels, *args)

    monkeypatch.setattr(context, 'parts', tmp_path / 'parts')
    monkeypatch.setattr(disturbances, 'pgd_attack', count)
    with pytest.raises(KeyboardInterrupt):
        context.map_images(test, attack, 'attack')
    # Two strengths of each of the three blocks of four images, of which two blocks are done.
    assert attacked == [4] * 4 and len(list(context.parts.iterdir())) == 2
    attacked[:] = [0] * 5
    resumed = context.map_images(test, attack, 'attack')
    assert attacked[5:] == [4] * 2
    assert all(torch.equal(resumed[kind], right) for kind, right in straight.items())


def test_attack_meets_the_pixels_of_the_images(setting):
    context, test, classifiers = setting
    batch = default_collate([test[row] for row in (0, 5, 11)])
    pixels = to_pixels(context.encoder, batch)
    torch.testing.assert_close(pixels, batch['inputs'][:, [2, 1, 0]] / 255)
    images = context.encoder.data_preprocessor(batch, False)['inputs']
    expected = classifiers['global'].logits(read_out(context.encoder.network, images).global_features)
    logits = disturbances.global_logits(context.encoder, classifiers['global'], pixels)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert batch_labels(batch).tolist() == [0, 1, 2]


def test_attended_patches_are_blackened(setting):
    context, test, classifiers = setting
    batch = default_collate([test[row] for row in range(4)])
    pixels, attention = to_pixels(context.encoder, batch), torch.rand(4, 2, 14, 14)
    seen = []
    occlusion = GuidedOcclusion(context.encoder, classifiers['global'], lambda _: attention, (0.25,))
    with (
        patch.object(disturbances, 'normalize_pixels', side_effect=lambda encoder, each: seen.append(each)),
        patch.object(disturbances, 'read_out', side_effect=StopIteration),
        pytest.raises(StopIteration),
    ):
        occlusion(batch)
    salience = attention.mean(1)
    for number in range(4):
        blackened = set(salience[number].flatten().argsort(descending=True)[:49].tolist())
        for row in range(32):
            for column in range(32):
                hidden = row * 14 // 32 * 14 + column * 14 // 32 in blackened
                expected = torch.zeros(3) if hidden else pixels[number, :, row, column]
                assert torch.equal(seen[0][number, :, row, column], expected)


def test_opposite_attention_exchanges_salient_and_others(setting):
    context, test, classifiers = setting
    attention = torch.rand(1, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    found = [
        context.map_images(test, GuidedOcclusion(context.encoder, classifiers['global'], attend, (0.5, 0.8)), name)
        for name, attend in dict(
            first=lambda pixels: attention[[0] * len(pixels)], second=lambda pixels: -attention[[0] * len(pixels)]
        ).items()
    ]
    assert torch.equal(found[0]['salient_occlusion'], found[1]['non_salient_occlusion'])


def test_guide_is_the_network_itself_or_a_checkpoint(setting, tmp_path):
    context, test, _ = setting
    batch = default_collate([test[row] for row in range(3)])
    pixels = to_pixels(context.encoder, batch)
    own = RobustnessProtocol()._find_guide(context)(pixels)
    expected = cls_attention(context.encoder.network, context.encoder.data_preprocessor(batch, False)['inputs'])
    torch.testing.assert_close(own, expected)
    resnet = make_context(context.data, tmp_path, kind='resnet')
    assert RobustnessProtocol()._find_guide(resnet) is None
    guide = SimpleNamespace(network=context.encoder.network, prepare=lambda each: each, to=lambda device: guide)
    with patch.object(robustness, 'load', return_value=guide) as load:
        foreign = RobustnessProtocol(guide='dino.pth', guide_source='timm')._find_guide(resnet)
        torch.testing.assert_close(foreign(pixels), cls_attention(context.encoder.network, pixels))
    load.assert_called_once_with('dino.pth', source='timm')


def test_mean_corruption_error_is_in_units_of_alexnet():
    right = {
        kind: {severity: dict(knn=np.arange(1000)[None] >= 1000 * error / 2) for severity in range(1, 6)}
        for kind, error in ALEXNET_ERRORS.items()
    }
    assert robustness._mean_corruption_error(right, 'knn') == pytest.approx(0.5, abs=1e-3)
    assert set(ALEXNET_ERRORS) == set(CORRUPTIONS)


def test_perturbed_images_come_level_after_level(setting):
    context, test, _ = setting
    disturbed = perturb_dataset(test, 'occlusion', (0.0, 1.0), seed=0)
    assert len(disturbed) == 24
    assert torch.equal(disturbed[3]['inputs'], test[3]['inputs']) and not disturbed[15]['inputs'].any()
    assert test[3]['inputs'].any()


def run_in_process(rank, world_size, data, work_dir):
    init_default_scope('mmpretrain')
    found = run_some(make_color_context(data, work_dir))
    return found.card['accuracies'], {name: score.value for name, score in found.scores.items()}


def test_processes_agree_with_one(data, tmp_path):
    expected, expected_scores = run_in_process(0, 1, data, tmp_path / 'one')
    for accuracies, scores in run_distributed(run_in_process, str(data), str(tmp_path / 'two')):
        assert accuracies == expected
        assert scores == pytest.approx(expected_scores)
