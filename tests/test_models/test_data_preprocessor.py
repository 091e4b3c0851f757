"""The data preprocessor against that of MMPretrain."""

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from mm_sop.functional.augmentation import BRIGHTNESS, FLIP, NEUTRAL_PARAMETERS, augment

NORMALIZATION = dict(mean=[10.0, 120.0, 200.0], std=[50.0, 60.0, 70.0])


@pytest.mark.parametrize('options', [dict(NORMALIZATION, to_rgb=True), NORMALIZATION, dict(to_rgb=True), {}])
@pytest.mark.parametrize('sizes', [[8, 8, 4], None])
def test_equals_the_one_of_mmpretrain(options, sizes):
    images = [torch.randint(256, (2, 3, size, size), dtype=torch.uint8) for size in sizes or [8]]
    samples = [DataSample(), DataSample()]
    ours, theirs = (
        MODELS.build(dict(options, type=name))(dict(inputs=images if sizes else images[0], data_samples=samples), True)
        for name in ('MultiViewDataPreprocessor', 'SelfSupDataPreprocessor')
    )
    assert torch.equal(torch.cat([*map(torch.ravel, ours['inputs'])]), torch.cat([*map(torch.ravel, theirs['inputs'])]))
    assert type(ours['inputs']) is type(theirs['inputs'])
    assert len(ours['data_samples']) == 2


def augmentations(views):
    parameters = [torch.tensor([NEUTRAL_PARAMETERS] * len(view)) for view in views]
    for number, table in enumerate(parameters):
        table[:, BRIGHTNESS] = torch.tensor([0.5, 1.2]) + 0.1 * number
        table[1, FLIP] = 1
    return parameters


@pytest.mark.parametrize('sizes', [[8, 6, 8, 6, 6], None])
def test_augments_each_view_before_normalization(sizes):
    views = [torch.randint(256, (2, 3, size, size), dtype=torch.uint8) for size in sizes or [8]]
    parameters = augmentations(views)
    preprocessor = MODELS.build(dict(NORMALIZATION, type='MultiViewDataPreprocessor', to_rgb=True))
    augmented = [augment(*pair).to(torch.uint8) for pair in zip(views, parameters, strict=True)]
    batch = (
        dict(inputs=views, augmentations=parameters) if sizes else dict(inputs=views[0], augmentations=parameters[0])
    )
    result = preprocessor(batch, True)
    expected = preprocessor(dict(inputs=augmented if sizes else augmented[0]), True)
    assert result.keys() == {'inputs'}
    assert type(result['inputs']) is type(expected['inputs'])
    for ours, theirs in zip(result['inputs'], expected['inputs'], strict=True):
        assert torch.equal(ours, theirs)


def test_each_view_needs_its_parameters():
    views = [torch.zeros(2, 3, 8, 8, dtype=torch.uint8)] * 2
    preprocessor = MODELS.build(dict(type='MultiViewDataPreprocessor'))
    with pytest.raises(ValueError, match='each of the 2 views'):
        preprocessor(dict(inputs=views, augmentations=augmentations(views[:1])))


def test_augmentation_is_compiled_only_if_asked_for(monkeypatch):
    # The real compiler takes a minute.
    monkeypatch.setattr(torch, 'compile', lambda function, **options: lambda *tensors: -function(*tensors))
    views = [torch.full((2, 3, 8, 8), 7, dtype=torch.uint8)]
    for compiles, factor in ((False, 1), (True, -1)):
        preprocessor = MODELS.build(dict(type='MultiViewDataPreprocessor', compile_augmentation=compiles))
        neutral = torch.tensor([NEUTRAL_PARAMETERS] * 2)
        batch = preprocessor(dict(inputs=views, augmentations=[neutral]))
        assert (batch['inputs'][0] == 7 * factor).all()
