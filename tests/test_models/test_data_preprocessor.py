"""The data preprocessor against that of MMPretrain."""

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

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
