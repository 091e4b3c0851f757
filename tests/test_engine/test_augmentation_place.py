"""Where a run augments its views."""

import pytest
from mmengine.config import Config

from mm_sop.engine import augmentation
from mm_sop.engine.augmentation import place_augmentation

PREPROCESSOR = dict(type='MultiViewDataPreprocessor')


def config_of(place, preprocessor=PREPROCESSOR, views='FastMultiView'):
    pipeline = [dict(type='LoadImage'), dict(type=views, num_views=1, transforms=[[]]), dict(type='PackInputs')]
    dataset = dict(type='SeededDataset', dataset=dict(type='UnlabeledImages', pipeline=pipeline))
    return Config(dict(augment_on=place, data_preprocessor=preprocessor, train_dataloader=dict(dataset=dataset)))


def place_of(cfg):
    place_augmentation(cfg)
    return cfg.train_dataloader.dataset.dataset.pipeline[1].get('augment_on')


@pytest.mark.parametrize('views', ['FastMultiView', 'mmpretrain.PairMultiView'])
@pytest.mark.parametrize(
    ('place', 'device', 'expected'),
    [('host', 'cuda', 'host'), ('device', 'cpu', 'device'), ('auto', 'cpu', 'host'), ('auto', 'cuda', 'device')],
)
def test_place_reaches_the_views(monkeypatch, views, place, device, expected):
    monkeypatch.setattr(augmentation, 'get_device', lambda: device)
    assert place_of(config_of(place, views=views)) == expected


def test_another_preprocessor_cannot_augment(monkeypatch):
    monkeypatch.setattr(augmentation, 'get_device', lambda: 'cuda')
    stock = dict(type='SelfSupDataPreprocessor')
    assert place_of(config_of('auto', stock)) == 'host'
    with pytest.raises(ValueError, match="augment_on='device' needs data_preprocessor=.*use 'host' or 'auto'"):
        place_of(config_of('device', stock))


def test_views_of_mmpretrain_cannot_be_augmented_on_the_device():
    with pytest.raises(ValueError, match='needs a pipeline with FastMultiView'):
        place_of(config_of('device', views='MultiView'))
    assert place_of(config_of('auto', views='MultiView')) is None


def test_unknown_place_is_refused():
    with pytest.raises(ValueError, match="augment_on must be 'host', 'device' or 'auto', got 'gpu'"):
        place_of(config_of('gpu'))
