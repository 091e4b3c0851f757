"""Anchor draws: without replacement, uniform over rows, exchangeable, reproducible."""

import pytest
import torch

from mm_sop.functional import sample_anchors, sample_weighted


def test_anchors_are_distinct_rows():
    anchors = sample_anchors(50, 20, num_tasks=200)
    assert anchors.shape == (200, 20)
    assert anchors.dtype == torch.int64
    assert anchors.min() >= 0
    assert anchors.max() < 50
    assert all(len(set(task)) == 20 for task in anchors.tolist())


def test_all_rows_give_a_permutation():
    anchors = sample_anchors(30, 30, num_tasks=2)
    assert torch.equal(anchors.sort(dim=1).values, torch.arange(30).expand(2, -1))
    assert not torch.equal(anchors[0], anchors[1])


def test_generator_decides():
    def draw(seed):
        return sample_anchors(100, 10, 3, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_given_generator_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    sample_anchors(100, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())


def test_rows_are_drawn_uniformly():
    draws, num_rows, num_anchors = 6000, 40, 8
    counts = sample_anchors(num_rows, num_anchors, draws).flatten().bincount(minlength=num_rows).double()
    assert counts.sum() == draws * num_anchors
    fraction = num_anchors / num_rows
    # Independent draws of 0/1 with this fraction, less one degree of freedom; the fraction is fixed within a draw.
    statistic = (
        ((counts - draws * fraction) ** 2).sum() / (draws * fraction * (1 - fraction)) * (num_rows - 1) / num_rows
    )
    assert statistic.item() < 72.1  # 0.999 quantile of chi-square with 39 degrees of freedom


def test_tasks_are_independent():
    anchors = sample_anchors(40, 10, num_tasks=4000)
    same = (anchors[::2].unsqueeze(2) == anchors[1::2].unsqueeze(1)).any(2).sum(1).double().mean().item()
    assert same == pytest.approx(10 * 10 / 40, abs=0.15)


def test_first_half_of_the_anchors_is_a_uniform_thinning():
    draws, num_rows, num_anchors = 6000, 24, 12
    anchors = sample_anchors(num_rows, num_anchors, draws)
    drawn = anchors.flatten().bincount(minlength=num_rows).double()
    kept = anchors[:, : num_anchors // 2].flatten().bincount(minlength=num_rows).double()
    statistic = ((kept - drawn / 2) ** 2 / (drawn / 4)).sum().item()
    assert statistic < 51.2  # 0.999 quantile of chi-square with 24 degrees of freedom


def test_positions_within_a_draw_are_exchangeable():
    first = sample_anchors(16, 4, num_tasks=8000)[:, 0].bincount(minlength=16).double()
    last = sample_anchors(16, 4, num_tasks=8000)[:, -1].bincount(minlength=16).double()
    for counts in (first, last):
        assert ((counts - 500) ** 2 / 500).sum().item() < 37.7  # 0.999 quantile, 15 degrees of freedom


@pytest.mark.parametrize('num_anchors', [0, -1, 11])
def test_impossible_numbers_of_anchors_are_refused(num_anchors):
    with pytest.raises(ValueError, match=f'between 1 and the 10 rows of the bank, got {num_anchors}'):
        sample_anchors(10, num_anchors)


def test_weighted_draws_are_those_of_multinomial():
    """PyTorch's function on the host is the oracle, whose host waits are why it is not used."""
    weights = torch.rand(3, 500, generator=torch.Generator().manual_seed(0)) + 0.01
    ours, theirs = (torch.Generator().manual_seed(1) for _ in range(2))
    for count in (1, 100, 500):
        expected = torch.multinomial(weights, count, generator=theirs)
        assert torch.equal(sample_weighted(weights, count, ours), expected)
