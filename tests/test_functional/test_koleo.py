"""KoLeo regularizer against loops over pairs."""

import math

import pytest
import torch
from torch.nn import functional as F

from mm_sop.functional import koleo_loss


def unit_rows(num_rows, width=5, dtype=torch.float64):
    return F.normalize(torch.randn(num_rows, width, dtype=dtype), dim=1)


def loop_koleo(embeddings, candidates, offset):
    """Mean over rows of the negative log-distance to the closest other row, found by trying all of them."""
    total = 0.0
    for i, row in enumerate(embeddings.tolist()):
        distances = [math.dist(row, other) for j, other in enumerate(candidates.tolist()) if j != i + offset]
        total -= math.log(min(distances))
    return total / len(embeddings)


@pytest.mark.parametrize('num_rows', [2, 3, 17])
def test_equals_a_loop_over_pairs(num_rows):
    rows = unit_rows(num_rows)
    assert koleo_loss(rows).item() == pytest.approx(loop_koleo(rows, rows, 0), abs=1e-6)


@pytest.mark.parametrize('offset', [0, 4, 8])
def test_gathered_candidates_leave_out_the_row_itself(offset):
    candidates = unit_rows(12)
    rows = candidates[offset : offset + 4]
    loss = koleo_loss(rows, candidates, offset)
    assert loss.item() == pytest.approx(loop_koleo(rows, candidates, offset), abs=1e-6)


def test_mean_over_parts_equals_the_whole():
    rows = unit_rows(12)
    parts = [koleo_loss(part, rows, offset=4 * i) for i, part in enumerate(rows.split(4))]
    torch.testing.assert_close(sum(parts) / 3, koleo_loss(rows))


def test_gradient_is_exact():
    assert torch.autograd.gradcheck(koleo_loss, unit_rows(6).requires_grad_())


def test_descent_spreads_the_rows():
    rows = unit_rows(8).mul_(0.05).add_(torch.eye(5, dtype=torch.float64)[0]).requires_grad_()
    closest = []
    for _ in range(20):
        embeddings = F.normalize(rows, dim=1)
        closest.append(torch.pdist(embeddings).min().item())
        (gradient,) = torch.autograd.grad(koleo_loss(embeddings), rows)
        rows = (rows - 0.05 * gradient).detach().requires_grad_()
    assert closest[-1] > 2 * closest[0]


def test_equal_rows_stay_finite():
    rows = torch.ones(3, 4).div_(2).requires_grad_()
    loss = koleo_loss(rows)
    loss.backward()
    assert 15 < loss.item() < 20
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_single(dtype):
    rows = unit_rows(10, 16).to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = koleo_loss(rows)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, koleo_loss(rows.float()))


def test_one_row_has_no_neighbor():
    with pytest.raises(ValueError, match='at least 2 embeddings'):
        koleo_loss(unit_rows(1))
