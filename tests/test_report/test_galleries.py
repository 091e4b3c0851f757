import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from testing.labeled_images import CLASSES, TinyImages
from testing.sop_models import sop_config
from torch.nn.functional import normalize

from mm_sop.evaluation.features.extraction import evaluation_mode
from mm_sop.functional.augmentation import BRIGHTNESS, NEUTRAL_PARAMETERS
from mm_sop.report import galleries
from mm_sop.report.galleries import ImageSet, hide, mask_gallery, view_gallery, views_of
from mm_sop.report.montage import RIGHT, WRONG

NORMALIZATION = dict(type='SelfSupDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True)


@pytest.fixture
def shown(monkeypatch):
    """Tiles of the last montage."""
    tiles = []

    def keep(rows, *args, **kwargs):
        tiles[:] = [list(row) for row in rows]
        return montage(rows, *args, **kwargs)

    montage = galleries.montage
    monkeypatch.setattr(galleries, 'montage', keep)
    return tiles


@pytest.fixture
def model():
    model = MODELS.build(sop_config(data_preprocessor=NORMALIZATION))
    model.init_weights()
    with evaluation_mode(model), torch.no_grad():
        yield model


@pytest.fixture
def bank(model):
    return ImageSet(model, TinyImages(range(9), count=40, seed=1))


def test_images_carry_the_teachers_view(model, bank):
    images = (bank.dataset.dataset.images[:, [2, 1, 0]].float() - 120) / 60
    torch.testing.assert_close(bank.images(range(40)), images)
    features = model.extract_feat(images)[0]
    torch.testing.assert_close(bank.features, features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bank.embeddings, model.teacher['neck'](features), rtol=1e-4, atol=1e-5)
    assert np.array_equal(bank.image(7), bank.dataset.dataset.images[7].flip(0).permute(1, 2, 0))
    assert [bank.class_name(index) for index in range(3)] == list(CLASSES)


def test_large_sets_are_sampled(model):
    dataset = TinyImages(range(9), count=40, seed=1)
    few = ImageSet(model, dataset, limit=6, seed=2)
    again = ImageSet(model, dataset, limit=6, seed=2)
    assert len(few) == 6 and few.dataset.indices == again.dataset.indices == sorted(set(few.dataset.indices))
    assert ImageSet(model, dataset, limit=6, seed=3).dataset.indices != few.dataset.indices
    assert few.labels.tolist() == [dataset.get_data_info(index)['gt_label'] for index in few.dataset.indices]


def test_supports_are_the_nearest_images_without_the_anchors(bank, shown):
    gallery = galleries.support_gallery(bank, num_anchors=3, num_supports=4, seed=5)
    anchors = galleries.random_rows(40, 3, 5)
    unit = normalize(bank.embeddings, dim=1)
    for row, anchor, cosines in zip(shown, anchors, gallery.data['cosines'], strict=True):
        similarity = {i: float(unit[i] @ unit[anchor]) for i in range(40) if i not in anchors}
        nearest = sorted(similarity, key=similarity.get, reverse=True)[:4]
        assert cosines == pytest.approx([similarity[index] for index in nearest], abs=1e-6)
        assert row[0].caption == 'anchor' and np.array_equal(row[0].image, bank.image(anchor))
        for tile, index in zip(row[1:], nearest, strict=True):
            assert np.array_equal(tile.image, bank.image(index))
            assert tile.caption == f'{similarity[index]:.2f}'


def test_neighbors_are_framed_by_their_class(model, bank, shown):
    queries = ImageSet(model, TinyImages(range(9), count=20, seed=2))
    gallery = galleries.neighbor_gallery(bank, queries, num_queries=5, num_neighbors=6, seed=1)
    frames = [tile.frame for row in shown for tile in row[1:]]
    for row in shown:
        assert row[0].frame is None
        assert all((tile.frame == RIGHT) == (tile.caption == row[0].caption) for tile in row[1:])
    assert set(frames) == {RIGHT, WRONG} and len(frames) == 30
    assert gallery.data['right_fraction'] == frames.count(RIGHT) / 30
    unit = normalize(queries.features, dim=1)[galleries.random_rows(20, 5, 1)] @ normalize(bank.features, dim=1).T
    torch.testing.assert_close(torch.tensor(gallery.data['cosines']), unit.sort(descending=True).values[:, :6])


def test_attention_of_a_transformer_and_similarity_of_a_convolutional_network(bank, shown):
    assert galleries.attention_gallery(bank, num_images=2).data['maps'] == ['mean', 'head 1', 'head 2']
    assert [len(row) for row in shown] == [4, 4]
    backbone = dict(type='ResNet', depth=18, base_channels=4, stem_channels=4)
    model = MODELS.build(
        dict(type='ImageClassifier', backbone=backbone, data_preprocessor=dict(mean=[0] * 3, std=[1] * 3))
    )
    with evaluation_mode(model), torch.no_grad():
        images = ImageSet(model, TinyImages(range(9), count=5, size=64))
        assert galleries.attention_gallery(images, num_images=2).data['maps'] == ['similarity']
    assert torch.equal(images.features, images.embeddings)


def test_hidden_patches():
    image = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3)
    mask = np.array([[True, False, False], [False, False, True]])
    hidden = hide(image, mask)
    for row in range(6):
        for column in range(9):
            expected = [128] * 3 if mask[row // 3, column // 3] else image[row, column].tolist()
            assert hidden[row, column].tolist() == expected


class Training(torch.utils.data.Dataset):
    """Two views with their masks, as a training pipeline returns them."""

    def __init__(self, masks=True):
        self.dataset = self
        self.masks = masks
        self.pipeline = self
        self.transforms = [lambda info: dict(img=np.full((10, 20, 3), info['index'], np.uint8))]

    def __len__(self):
        return 6

    def get_data_info(self, index):
        return dict(index=index)

    def __getitem__(self, index):
        views = [torch.full((3, 8, 8), 10 * index + view, dtype=torch.uint8) for view in range(2)]
        mask = dict(mask=np.arange(8).reshape(2, 2, 2) < index) if self.masks else {}
        return dict(inputs=views, data_samples=DataSample(metainfo=mask))


def test_views_stand_beside_their_image(shown):
    gallery = view_gallery(Training(), bgr=False, num_images=6)
    assert gallery.data == dict(views=2)
    for index, (original, *views) in enumerate(shown):
        assert original.image.shape == (10, 20, 3) and (original.image == index).all()
        assert [int(view.image[0, 0, 0]) for view in views] == [10 * index, 10 * index + 1]


def test_views_are_shown_as_the_network_sees_them():
    dark, same = torch.tensor([NEUTRAL_PARAMETERS] * 2).split(1)
    dark[:, BRIGHTNESS] = 0.5
    sample = dict(inputs=[torch.full((3, 8, 8), 90, dtype=torch.uint8)] * 2, augmentations=[dark[0], same[0]])
    assert [view.unique().tolist() for view in views_of(sample)] == [[45], [90]]


def test_masks_stand_beside_their_view(shown):
    gallery = mask_gallery(Training(), bgr=False, num_images=6)
    assert gallery.data['masked_fractions'] == [min(max(i - 4 * v, 0), 4) / 4 for i in range(6) for v in range(2)]
    for teacher, student in ((row[2 * view], row[2 * view + 1]) for row in shown for view in range(2)):
        changed = (teacher.image != student.image).any(2).mean()
        assert student.caption == f'{changed:.0%} hidden'
    assert mask_gallery(Training(masks=False), bgr=False) is None
