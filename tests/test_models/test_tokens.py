import pytest
import torch

from mm_sop.models.utils.tokens import split_features, to_map


@pytest.mark.parametrize(
    'image, grid',
    [
        ((64, 96), (4, 6)),
        ((96, 64), (6, 4)),
        ((48, 48), (3, 3)),
        ((49, 65), (3, 4)),
        ((33, 16), (3, 1)),
        ((17, 90), (1, 6)),
    ],
)
def test_places_get_back_their_rows(image, grid):
    feature_map = torch.randn(2, 5, *grid)
    assert torch.equal(to_map(split_features(feature_map)[1], image), feature_map)
