import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import PixelData
from mmpretrain.registry import MODELS
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from mm_sop.models.heads import FPNSegmentationHead, LinearSegmentationHead
from mm_sop.models.segmentors.semantic_segmentor import window_slices

BACKBONE = dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4, strides=(2, 2, 2, 2))
PREPROCESSOR = dict(type='mmdet.DetDataPreprocessor', mean=[0.0] * 3, std=[50.0] * 3, pad_seg=True, pad_size_divisor=8)


def make_segmentor(**options):
    config = dict(
        type='SemanticSegmentor',
        backbone=dict(BACKBONE, out_indices=(1, 2)),
        head=dict(type='LinearSegmentationHead', in_channels=[8, 16], num_classes=5),
        data_preprocessor=PREPROCESSOR,
    )
    return MODELS.build(dict(config, **options))


def make_batch(sizes=((20, 28), (24, 17))):
    generator = torch.Generator().manual_seed(0)
    batch = dict(inputs=[], data_samples=[])
    for size in sizes:
        labels = torch.randint(0, 5, (1, *size), generator=generator, dtype=torch.uint8)
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=(2 * size[0], 2 * size[1])))
        sample.gt_sem_seg = PixelData(sem_seg=labels)
        batch['inputs'].append(torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8))
        batch['data_samples'].append(sample)
    return batch


def test_the_loss_leaves_padding_and_unlabeled_pixels_out():
    model = make_segmentor()
    batch = make_batch()
    batch['data_samples'][0].gt_sem_seg.sem_seg[0, :5] = 255
    labels = [sample.gt_sem_seg.sem_seg[0].long() for sample in batch['data_samples']]
    data = model.data_preprocessor(batch, True)
    loss = model(**data, mode='loss')['loss_seg']

    logits = interpolate(model(data['inputs']).double(), size=(24, 32), mode='bilinear', align_corners=False)
    terms = [
        cross_entropy(logits[image, :, row, column][None], label[None])
        for image, label_map in enumerate(labels)
        for row, line in enumerate(label_map)
        for column, label in enumerate(line)
        if label != 255
    ]
    assert loss.item() == pytest.approx(sum(terms).item() / len(terms), rel=1e-5)


def test_a_image_without_labels_gives_no_loss():
    model = make_segmentor()
    batch = make_batch()
    for sample in batch['data_samples']:
        sample.gt_sem_seg.sem_seg.fill_(255)
    loss = model(**model.data_preprocessor(batch, True), mode='loss')['loss_seg']
    loss.backward()
    assert loss == 0 and model.head.classifier.weight.grad.abs().sum() == 0


def test_predictions_have_the_original_size():
    model = make_segmentor().eval()
    batch = make_batch()
    data = model.data_preprocessor(batch)
    samples = model(**data, mode='predict')
    assert [sample.pred_sem_seg.sem_seg.shape for sample in samples] == [(1, 40, 56), (1, 48, 34)]
    logits = interpolate(model(data['inputs']), size=(24, 32), mode='bilinear', align_corners=False)
    scores = interpolate(logits[1:, :, :24, :17], size=(48, 34), mode='bilinear', align_corners=False)
    assert torch.equal(samples[1].pred_sem_seg.sem_seg[0], scores[0].argmax(0))


def test_a_frozen_encoder_stays_as_it_is():
    model = make_segmentor(frozen=True)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.train()
    loss = model(**model.data_preprocessor(make_batch(), True), mode='loss')['loss_seg']
    loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert all(parameter.grad is not None for parameter in model.head.parameters())
    assert model.head.training and not model.backbone.training


def test_linear_head_against_a_loop():
    head = LinearSegmentationHead([2, 3], num_classes=4).double().eval()
    nn.init.normal_(head.norm.running_mean)
    nn.init.uniform_(head.norm.running_var, 0.5, 2)
    fine, coarse = torch.randn(1, 2, 4, 6).double(), torch.randn(1, 3, 4, 6).double()
    logits = head((fine, coarse))
    weight, bias = head.classifier.weight[..., 0, 0], head.classifier.bias
    for row in range(4):
        for column in range(6):
            vector = torch.cat([fine[0, :, row, column], coarse[0, :, row, column]])
            vector = (vector - head.norm.running_mean) / (head.norm.running_var + head.norm.eps).sqrt()
            assert torch.allclose(logits[0, :, row, column], weight @ vector + bias)


def test_fpn_head_sums_the_levels_at_the_finest_size():
    head = FPNSegmentationHead([3, 3], num_classes=4, channels=8).double().eval()
    fine, coarse = torch.randn(2, 3, 8, 6).double(), torch.randn(2, 3, 4, 3).double()
    enlarged = interpolate(head.convs[1](coarse), size=(8, 6), mode='bilinear', align_corners=False)
    assert torch.allclose(head((fine, coarse)), head.classifier(head.convs[0](fine) + enlarged))


@pytest.mark.parametrize('shapes', [[(1, 9, 4, 4), (1, 16, 2, 2)], [(1, 8, 4, 4)], [(1, 17, 8), (1, 17, 16)]])
def test_features_that_do_not_fit_are_named(shapes):
    head = LinearSegmentationHead([8, 16], num_classes=5)
    with pytest.raises(ValueError, match=r"expects maps \(B, D, h, w\) of widths \(8, 16\), got .*out_type='featmap'"):
        head([torch.zeros(shape) for shape in shapes])


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="got 'train'"):
        make_segmentor()(torch.zeros(1, 3, 16, 16), mode='train')


@pytest.mark.parametrize(
    ('length', 'starts'), [(8, [0]), (5, [0]), (9, [0, 1]), (13, [0, 5]), (14, [0, 5, 6]), (18, [0, 5, 10])]
)
def test_windows_cover_the_side(length, starts):
    assert [area.start for area in window_slices(length, 8, 5)] == starts


def test_sliding_windows_against_a_loop():
    model = make_segmentor(window=dict(stride=(8, 16), size=(16, 24))).eval()
    images = torch.randn(1, 3, 24, 40)
    total, count = torch.zeros(1, 5, 24, 40), torch.zeros(24, 40)
    for top in (0, 8):
        for left in (0, 16):
            part = images[:, :, top : top + 16, left : left + 24]
            logits = interpolate(model(part), size=(16, 24), mode='bilinear', align_corners=False)
            total[:, :, top : top + 16, left : left + 24] += logits
            count[top : top + 16, left : left + 24] += 1
    assert torch.allclose(model._slide(images), total / count, atol=1e-6)


def test_one_window_is_the_whole_image():
    model = make_segmentor(window=dict(size=(64, 64), stride=(32, 32))).eval()
    images = torch.randn(2, 3, 24, 40)
    assert torch.equal(model._slide(images), model._logits(images))


def test_windows_with_gaps_are_refused():
    with pytest.raises(ValueError, match=r'the stride \(32, 65\) must not be larger than the size \(64, 64\)'):
        make_segmentor(window=dict(size=(64, 64), stride=(32, 65)))
