import pytest
import torch
from mmpretrain.registry import MODELS
from testing.labeled_images import TinyImages
from torch import nn

from mm_sop.evaluation.features import extraction as features_module
from mm_sop.evaluation.features.extraction import (
    color_histogram,
    encode_without_network,
    evaluation_mode,
    extract_features,
    network_encoder,
    raw_pixels,
)

NORMALIZATION = dict(mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True)


def encode(batch):
    return dict(flat=batch['inputs'].float().flatten(1), mean=batch['inputs'].float().mean((2, 3)))


@pytest.fixture
def dataset():
    return TinyImages(range(5), count=11)


@pytest.mark.parametrize('num_workers', [0, 1])
def test_features_come_in_the_order_of_the_data(dataset, num_workers):
    features = extract_features(encode, dataset, batch_size=4, num_workers=num_workers)
    assert torch.equal(features['flat'], dataset.images.float().flatten(1))
    assert torch.equal(features['mean'], dataset.images.float().mean((2, 3)))


def test_processes_encode_every_image_once(dataset):
    whole = extract_features(encode, dataset)['mean']
    shares = [extract_features(encode, dataset, batch_size=2, rank=rank, world_size=3)['mean'] for rank in range(3)]
    assert [len(share) for share in shares] == [4, 4, 3]
    for rank, share in enumerate(shares):
        assert torch.equal(share, whole[rank::3])
    assert sorted(dataset.loaded[11:]) == list(range(11))


def test_more_processes_than_images(dataset):
    with pytest.raises(ValueError, match='11 images cannot be shared by 12 processes'):
        extract_features(encode, dataset, rank=0, world_size=12)


def test_random_state_is_not_touched(dataset):
    before = torch.get_rng_state()
    extract_features(encode, dataset)
    assert torch.equal(torch.get_rng_state(), before)


def tiny_classifier(backbone):
    model = dict(type='ImageClassifier', data_preprocessor=dict(NORMALIZATION), backbone=backbone)
    return MODELS.build(model).eval()


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='ResNet', depth=18, stem_channels=4, base_channels=4),
        dict(
            type='MaskedVisionTransformer',
            arch=dict(embed_dims=12, num_layers=2, num_heads=3, feedforward_channels=24),
            img_size=16,
            patch_size=8,
        ),
    ],
)
def test_readouts_of_any_backbone(dataset, backbone):
    model = tiny_classifier(backbone)
    features = extract_features(network_encoder(model, readouts=('global', 'patch')), dataset, batch_size=5)
    output = model.backbone((dataset.images[:, [2, 1, 0]].float() - 120) / 60)[-1]
    tokens = output.flatten(2).transpose(1, 2) if output.ndim == 4 else output[:, 1:]
    expected = tokens.mean(1) if output.ndim == 4 else output[:, 0]
    torch.testing.assert_close(features['global'], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features['patch'], tokens.mean(1), rtol=1e-4, atol=1e-5)


def test_teacher_and_student_are_told_apart(dataset):
    class Pair(nn.Module):
        has_teacher = True
        data_preprocessor = MODELS.build(dict(type='SelfSupDataPreprocessor', **NORMALIZATION))

        def extract_feat(self, images, network='teacher'):
            local = images * dict(teacher=2, student=3)[network]
            return local.amax((2, 3)), local

    inputs = Pair.data_preprocessor(dict(inputs=dataset.images, data_samples=None))['inputs']
    for network, factor in (('teacher', 2), ('student', 3)):
        features = extract_features(network_encoder(Pair(), network, ('global', 'patch')), dataset)
        torch.testing.assert_close(features['global'], factor * inputs.amax((2, 3)))
        torch.testing.assert_close(features['patch'], factor * inputs.mean((2, 3)))


def test_unknown_readout():
    with pytest.raises(ValueError, match="must be among .*'patch'.* got .*'pixel'"):
        network_encoder(nn.Identity(), readouts=('pixel',))


def test_modes_and_statistics_return():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()))
    model.train()[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        model(torch.randn(4, 3))
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False, False, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_long_work_shows_progress(dataset, monkeypatch, capsys):
    monkeypatch.setattr(features_module, '_SECONDS_BETWEEN_REPORTS', -1)
    extract_features(encode, dataset, batch_size=4)
    assert 'Encoded 2 of 3 batches' in capsys.readouterr().out
    extract_features(encode, dataset, batch_size=4, rank=1, world_size=2)
    assert 'Encoded' not in capsys.readouterr().out


@pytest.fixture
def images():
    return torch.randint(256, (3, 3, 24, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_raw_pixels_are_cell_means_without_the_mean_color(images):
    features = raw_pixels(images, size=4).view(3, 3, 4, 4).double()
    for image, feature in zip(images.double(), features, strict=True):
        for channel, small in zip(image, feature, strict=True):
            for row in range(4):
                for column in range(4):
                    cell = channel[6 * row : 6 * row + 6, 8 * column : 8 * column + 8]
                    assert float(small[row, column]) == pytest.approx(float(cell.mean() - channel.mean()), abs=1e-4)


def test_histogram_counts_the_center(images):
    features = color_histogram(images)
    for image, feature in zip(images.tolist(), features, strict=True):
        expected = torch.zeros(4, 4, 4)
        for y in range(6, 18):
            for x in range(8, 24):
                first, second, third = (image[channel][y][x] // 64 for channel in range(3))
                expected[third, second, first] += 1 / (12 * 16)
        torch.testing.assert_close(feature, expected.flatten())


def test_border_does_not_count_in_the_histogram(images):
    changed = images.clone()
    changed[..., :6, :] = 0
    changed[..., 24:] = 255
    assert torch.equal(color_histogram(changed), color_histogram(images))


def test_batch_gives_both(images):
    features = encode_without_network(dict(inputs=images))
    assert features['raw_pixels'].shape == (3, 768) and features['color_histogram'].shape == (3, 64)
