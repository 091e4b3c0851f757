"""From images to a manifest: encoders, shards, calibration."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from PIL import Image
from testing.distributed import run_distributed
from testing.sample_images import write_images

from mm_sop.datasets.semantic_pairs import ManifestError, describe_data
from mm_sop.encoders.checkpoint import WeightsError
from mm_sop.encoders.encoder import build_encoder
from mm_sop.evaluation.features.store import FeatureShards
from mm_sop.evaluation.retrieval.mining import PlainImages, Selection, choose_images, format_report, make_manifest, mine
from mm_sop.functional.semantic_pairs import mine_semantic_pairs

BACKBONE = dict(type='ResNet', depth=18, stem_channels=4, base_channels=4)
VIEW = [dict(type='FastRandomResizedCrop', scale=32), dict(type='RandomFlip', prob=0.5)]


def make_config(folder, **model):
    return Config(
        dict(
            model=dict(type='SimSiam', backbone=BACKBONE, **model),
            data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True),
            train_dataloader=dict(
                dataset=dict(
                    type='SeededDataset',
                    dataset=dict(
                        type='UnlabeledImages',
                        data_root=str(folder),
                        pipeline=[
                            dict(type='LoadImage'),
                            dict(type='MultiView', num_views=2, transforms=[VIEW]),
                            dict(type='PackInputs'),
                        ],
                    ),
                ),
            ),
        )
    )


def save_backbone(path, prefix='backbone.', seed=0, extra=()):
    torch.manual_seed(seed)
    backbone = MODELS.build(BACKBONE)
    state = {prefix + name: value for name, value in backbone.state_dict().items()}
    torch.save(dict(state_dict=dict(state, **dict(extra)), meta=dict(epoch=1)), path)
    backbone.eval()
    return backbone


@pytest.fixture
def checkpoint(tmp_path):
    save_backbone(tmp_path / 'encoder.pth')
    return tmp_path / 'encoder.pth'


def test_plain_images_are_resized_and_cropped_in_the_center(images):
    dataset = PlainImages(make_config(images))
    assert len(dataset) == 12
    assert dataset[0]['inputs'].shape == (3, 32, 32)
    assert torch.equal(dataset[3]['inputs'], dataset[3]['inputs'])
    steps = ['LoadImage', 'TrimLongSide', 'ResizeEdge', 'CenterCrop', 'PackInputs']
    assert [step['type'] for step in dataset.transform] == steps
    large = PlainImages(make_config(images), crop_size=224)
    assert large.transform[2]['scale'] == 256
    rows = large[3]['inputs'].float()
    repeated = (rows[:, 1:] == rows[:, :-1]).float().mean()
    assert repeated < 0.5, 'small images are enlarged smoothly, not pixel by pixel'


def test_config_with_pairs_can_be_mined_again(images):
    config = make_config(images)
    inner = config.train_dataloader.dataset.dataset
    config.train_dataloader.dataset.dataset = dict(
        type='SemanticPairDataset',
        manifest='missing.json',
        pipeline=inner.pop('pipeline'),
        dataset=inner,
    )
    assert len(PlainImages(config)) == 12
    assert PlainImages(config)[0]['inputs'].shape == (3, 32, 32)


def test_unreadable_images_have_no_features(tmp_path, checkpoint):
    files = write_images(tmp_path / 'data', 6)
    files[2].write_bytes(b'')
    config = make_config(tmp_path / 'data')
    dataset = PlainImages(config)
    broken = [str(files[2]) == dataset.dataset.get_data_info(index)['img_path'] for index in range(6)].index(True)
    shards = FeatureShards(tmp_path / 'features', np.arange(6), {}, 4)
    shards.encode(build_encoder(config, checkpoint).encode, dataset)
    assert (shards.load() == 0).all(1).nonzero().flatten().tolist() == [broken]


@pytest.mark.parametrize('prefix', ['backbone.', 'teacher.backbone.', 'module.encoder_q.', '', 'network.body.'])
def test_encoder_is_found_in_the_checkpoint(tmp_path, images, prefix):
    extra = {'neck.weight': torch.zeros(2), 'head.bias': torch.zeros(2)} if prefix else {}
    backbone = save_backbone(tmp_path / 'encoder.pth', prefix, extra=extra)
    encoder = build_encoder(make_config(images), tmp_path / 'encoder.pth')
    assert encoder.identity['prefix'] == prefix
    batch = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = backbone((batch[:, [2, 1, 0]].float() - 120) / 60)[0].mean((2, 3))
    sample = PlainImages(make_config(images))[0]['data_samples']
    result = encoder.encode(dict(inputs=batch, data_samples=[sample, sample]))['features']
    torch.testing.assert_close(result, expected)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_teacher_is_the_default_where_there_are_both(tmp_path, images):
    save_backbone(tmp_path / 'student.pth', 'backbone.', seed=1)
    student = torch.load(tmp_path / 'student.pth')['state_dict']
    save_backbone(tmp_path / 'both.pth', 'teacher.backbone.', seed=2, extra=student)
    for network, prefix in dict(teacher='teacher.backbone.', student='backbone.').items():
        encoder = build_encoder(make_config(images), tmp_path / 'both.pth', network=network)
        assert encoder.identity['prefix'] == prefix and encoder.identity['network'] == network
        expected = torch.load(tmp_path / 'both.pth')['state_dict'][f'{prefix}conv1.weight']
        assert torch.equal(encoder.network.conv1.weight, expected)


def test_encoders_of_timm_and_torchvision(tmp_path, images):
    import timm
    from torchvision.models import get_model

    cases = [
        (
            'timm:resnet18',
            timm.create_model('resnet18', pretrained=False),
            lambda m, x: m.forward_features(x).mean((2, 3)),
        ),
        ('torchvision:resnet18', get_model('resnet18', weights=None), None),
    ]
    sample = PlainImages(make_config(images))[0]
    batch = dict(inputs=sample['inputs'][None], data_samples=[sample['data_samples']])
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    image = (batch['inputs'][:, [2, 1, 0]].float() - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    for source, model, pooled in cases:
        torch.save(model.state_dict(), tmp_path / 'weights.pth')
        encoder = build_encoder(make_config(images), tmp_path / 'weights.pth', source)
        if pooled is None:
            model.fc, pooled = torch.nn.Identity(), lambda m, x: m(x)
        with torch.no_grad():
            expected = pooled(model.eval(), image)
        torch.testing.assert_close(encoder.encode(batch)['features'], expected, rtol=1e-4, atol=1e-4)
        assert encoder.identity['source'] == source


def test_classifier_of_torchvision_keeps_its_norm(tmp_path, images):
    from torchvision.models import get_model

    model = get_model('convnext_tiny', weights=None)
    torch.nn.init.constant_(model.classifier[0].weight, 3.0)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    encoder = build_encoder(make_config(images), tmp_path / 'weights.pth', 'torchvision:convnext_tiny')
    assert (encoder.network.classifier[0].weight == 3).all()
    del model.classifier[0]
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    with pytest.raises(WeightsError, match=r'missing +classifier.0.weight'):
        build_encoder(make_config(images), tmp_path / 'weights.pth', 'torchvision:convnext_tiny', prefix='')


def test_wrong_weights_are_refused(tmp_path, images, checkpoint):
    config = make_config(images)
    wider = Config(dict(config, model=dict(type='SimSiam', backbone=dict(BACKBONE, depth=34))))
    with pytest.raises(WeightsError, match=r'tensors are missing(?s:.*)backbone.layer1.2.conv1.weight'):
        build_encoder(wider, checkpoint)
    with pytest.raises(WeightsError, match=r'shape +conv1.weight +\(4, 3, 7, 7\), expected \(4, 1, 7, 7\)'):
        build_encoder(
            Config(dict(config, model=dict(backbone=dict(BACKBONE, out_indices=(3,), stem_channels=4, in_channels=1)))),
            checkpoint,
        )
    with pytest.raises(WeightsError, match='did you mean resnet'):
        build_encoder(config, checkpoint, 'timm:resnett18')
    with pytest.raises(WeightsError, match="torchvision has no model 'resnet19'"):
        build_encoder(config, checkpoint, 'torchvision:resnet19')


def test_images_are_drawn_once():
    images = choose_images(1000, 100, seed=3)
    assert len(set(images.tolist())) == 100
    assert (np.diff(images) > 0).all()
    assert np.array_equal(images, choose_images(1000, 100, seed=3))
    assert len(choose_images(1000)) == 1000
    assert len(choose_images(1_281_167)) == 128_117
    with pytest.raises(ValueError, match='cannot compare 11 of 10 images'):
        choose_images(10, 11)


class CountingEncoder:
    def __init__(self):
        self.calls = 0

    def __call__(self, batch):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return dict(features=batch['inputs'].float().mean((2, 3)))


def test_interrupted_encoding_is_resumed(tmp_path, images):
    dataset = PlainImages(make_config(images))
    shards = FeatureShards(tmp_path, np.arange(12), dict(encoder='a'), 4)
    with pytest.raises(KeyboardInterrupt):
        shards.encode(CountingEncoder(), dataset, batch_size=4)
    assert len(list(tmp_path.glob('*.npz'))) == 2
    (tmp_path / 'shard_000000000.npz').write_bytes(b'damaged')
    encoder = CountingEncoder()
    shards.encode(encoder, dataset, batch_size=4)
    assert encoder.calls == 2
    expected = torch.stack([dataset[index]['inputs'].float().mean((1, 2)) for index in range(12)])
    torch.testing.assert_close(shards.load(), expected)
    other = FeatureShards(tmp_path, np.arange(12), dict(encoder='b'), 4)
    with pytest.raises(ManifestError, match='features of another encoder'):
        other.encode(encoder, dataset)


def encode_rank(rank, world_size, images, folder, checkpoint):
    from mmengine.registry import init_default_scope

    init_default_scope('mmpretrain')
    config = make_config(images)
    shards = FeatureShards(folder, np.arange(12), {}, 3)
    shards.encode(build_encoder(config, checkpoint).encode, PlainImages(config), batch_size=2)
    return shards.load()


def test_two_processes_divide_the_encoding(tmp_path, images, checkpoint):
    one = run_distributed(encode_rank, str(images), str(tmp_path / 'one'), str(checkpoint), world_size=1)
    two = run_distributed(encode_rank, str(images), str(tmp_path / 'two'), str(checkpoint))
    assert torch.equal(one[0], two[0])
    assert torch.equal(two[0], two[1])


def clustered(count=120):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 10
    centers = torch.randn(10, 16, generator=generator)
    return centers[labels] + 0.25 * torch.randn(count, 16, generator=generator), labels.numpy()


@pytest.mark.parametrize('max_per_anchor', [1, 2, None])
def test_mined_pairs_and_report(max_per_anchor):
    features, labels = clustered()
    features[7] = 0
    selection = Selection(lower=0.93, upper=0.985, max_per_anchor=max_per_anchor)
    mined = mine(features, selection, labels, block_size=50)
    pairs, cosines = mine_semantic_pairs(features, 0.93, 0.985, max_per_anchor)
    assert torch.equal(mined.pairs, pairs)
    assert torch.equal(mined.cosines, cosines)
    report = mined.report
    assert report['num_pairs'] == len(pairs)
    assert report['num_without_features'] == 1
    for row in report['thresholds']:
        expected, _ = mine_semantic_pairs(features, row['lower'], 0.985, max_per_anchor)
        assert row['num_pairs'] == len(expected)
        assert row['images'] == len(expected.unique())
        same = labels[expected[:, 0]] == labels[expected[:, 1]]
        assert row['precision'] == (pytest.approx(same.mean()) if len(expected) else None)
    assert '0.9300 (used)' in format_report(report, 'test')
    assert json.loads(json.dumps(report)) == report


def test_suggestion_is_used_and_keeps_the_budget():
    features, _ = clustered()
    mined = mine(features, Selection(upper=1.0, budget=0.1))
    assert mined.lower == mined.report['suggested_lower']
    assert 0 < len(mined.pairs) <= 12
    with pytest.raises(ValueError, match='no pair can lie in the band'):
        mine(features, Selection(upper=0.1))
    with pytest.raises(ValueError, match='only 0 of 5 images have features'):
        mine(torch.zeros(5, 3), Selection())


def test_manifest_refers_to_the_whole_dataset(images):
    chosen = np.array([1, 3, 4, 8, 11])
    features = torch.tensor([[1.0, 0], [0, 1], [1, 0.2], [0.1, 1], [-1, 0]])
    selection = Selection(lower=0.9, upper=0.999)
    data = describe_data(PlainImages(make_config(images)).dataset)
    manifest = make_manifest(mine(features, selection), selection, chosen, dict(data=data, seed=4, encoder='e'))
    assert manifest.pairs.tolist() == [[1, 4], [3, 8]]
    assert manifest.definition['selection']['num_images'] == 5
    assert manifest.definition['selection']['seed'] == 4
    assert manifest.header['data']['num_images'] == 12


def test_order_of_images_and_blocks_does_not_matter(tmp_path):
    features, _ = clustered()
    results = [mine(features, Selection(lower=0.9), block_size=size) for size in (7, 64, 500)]
    for result in results[1:]:
        assert torch.equal(result.pairs, results[0].pairs)
        assert torch.equal(result.cosines, results[0].cosines)
        assert result.report == results[0].report


def test_gallery_and_chart(tmp_path):
    from mm_sop.report.pairs import group_pairs, write_pair_report

    features, labels = clustered()
    features[50] = features[51]
    mined = mine(features, Selection(lower=0.9, upper=0.99), labels)
    write_pair_report(tmp_path, mined, features, lambda row: np.full((8, 8, 3), row, np.uint8), 'test')
    gallery = json.loads((tmp_path / 'report.json').read_text())['gallery']
    assert gallery['duplicate'][0][:2] in ([50, 51], [51, 50])
    for name, (low, high) in dict(high=(0.96, 0.99), low=(0.9, 0.93), rejected=(0.81, 0.9)).items():
        assert all(low <= cosine <= high for *_, cosine in gallery[name])
    with Image.open(tmp_path / 'gallery.png') as image:
        assert image.width > image.height / 2
    mined = mine(features, Selection(lower=0.9, upper=1.0), labels)
    high = group_pairs(mined, features)['high'][0].tolist()
    assert [50, 51] in high
    with Image.open(tmp_path / 'histogram.png') as image:
        assert image.getpixel((0, 0))[3] == 255
