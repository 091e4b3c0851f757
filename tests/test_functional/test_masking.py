import pytest
import torch

from mm_sop.functional.masking import drop_block, drop_lowest_cells, masked_mean, noisy_mean


@pytest.mark.parametrize(('fraction', 'dropped'), [(0.0, 0), (0.1, 1), (0.5, 6), (0.99, 11), (1.0, 11)])
def test_random_cells(fraction, dropped):
    scores = torch.rand(20, 3, 4)
    keep = drop_lowest_cells(scores, fraction)
    assert keep.shape == scores.shape and (keep.sum((1, 2)) == 12 - dropped).all()
    for own_scores, own_keep in zip(scores, keep, strict=True):
        assert set(own_scores[~own_keep].tolist()) == set(own_scores.flatten().sort().values[:dropped].tolist())


def test_larger_shares_drop_more_of_the_same():
    scores = torch.rand(5, 4, 4)
    few, many = (drop_lowest_cells(scores, fraction) for fraction in (0.25, 0.75))
    assert (few | ~many).all()


@pytest.mark.parametrize(
    ('fraction', 'block'), [(0.0, (0, 0)), (0.25, (2, 2)), (0.6, (3, 3)), (0.95, (4, 3)), (0.07, (1, 1))]
)
def test_blocks_are_contiguous(fraction, block):
    positions = torch.rand(50, 2)
    keep = drop_block(positions, (4, 4), fraction)
    for mask in ~keep:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert sorted((len(rows), len(columns))) == sorted(block)
        assert mask.sum() == len(rows) * len(columns)
        assert all((line.diff() == 1).all() for line in (rows, columns))
    if block == (2, 2):
        assert len({tuple(mask.nonzero()[0].tolist()) for mask in ~keep}) == 9


def test_blocks_reach_all_sides():
    keep = drop_block(torch.tensor([[0.0, 0.0], [0.999, 0.999]]), (3, 5), 4 / 15)
    assert keep[0].tolist() == [[False] * 2 + [True] * 3] * 2 + [[True] * 5]
    assert keep[1].tolist() == [[True] * 5] + [[True] * 3 + [False] * 2] * 2


def test_masked_mean_equals_slow_one():
    local_map, keep = torch.randn(4, 5, 3, 2, dtype=torch.float64), drop_lowest_cells(torch.rand(4, 3, 2), 0.5)
    for over_survivors in (True, False):
        result = masked_mean(local_map, keep, over_survivors)
        for image, survivors, pooled in zip(local_map, keep, result, strict=True):
            cells = [image[:, row, column] for row in range(3) for column in range(2) if survivors[row, column]]
            torch.testing.assert_close(pooled, sum(cells) / (len(cells) if over_survivors else 6))


def test_nothing_is_taken_away():
    local_map = torch.randn(4, 5, 3, 2)
    everything = torch.ones(4, 3, 2, dtype=torch.bool)
    for pooled in (masked_mean(local_map, everything), noisy_mean(local_map, torch.randn(4, 5, 3, 2), 0.0)):
        torch.testing.assert_close(pooled, local_map.mean((2, 3)))


def test_noise_is_measured_by_the_map_of_each_image():
    local_map = torch.randn(2, 8, 50, 50, dtype=torch.float64) * torch.tensor([1.0, 7.0]).view(2, 1, 1, 1)
    noise = torch.randn_like(local_map)
    change = noisy_mean(local_map, noise, 0.5) - local_map.mean((2, 3))
    for index in range(2):
        expected = 0.5 * ((local_map[index] - local_map[index].mean()) ** 2).mean().sqrt() * noise[index].mean((1, 2))
        torch.testing.assert_close(change[index], expected)
