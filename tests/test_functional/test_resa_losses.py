import math

import pytest
import torch
from mmengine.dist import get_world_size
from testing.distributed import run_distributed
from torch.nn.functional import normalize

from mm_sop.functional import assigned_keys_loss, sinkhorn, soft_assignment_loss, symmetric_soft_assignment_loss
from mm_sop.utils.distributed import gather_with_gradient

SCORES = [[1.00, 0.90, 0.70, 0.60], [0.88, 0.99, 0.72, 0.65], [0.71, 0.70, 0.98, 0.85], [0.62, 0.66, 0.86, 1.00]]
COSINES = [[0.80, 0.30, -0.10, 0.00], [0.20, 0.70, 0.10, -0.20], [0.00, 0.10, 0.60, 0.40], [-0.10, 0.00, 0.50, 0.90]]
TEMPERATURE = 0.4


def golden():
    assignment = sinkhorn(torch.tensor(SCORES, dtype=torch.float64))
    return torch.tensor(COSINES, dtype=torch.float64), assignment


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def looped_rows(logits, assignment):
    loss = 0.0
    for i in range(len(logits)):
        total = sum(math.exp(value) for value in logits[i].tolist())
        loss -= sum(assignment[i, j] * math.log(math.exp(logits[i, j]) / total) for j in range(logits.shape[1]))
    return loss / len(logits)


def test_golden_losses():
    cosines, assignment = golden()
    logits = cosines / TEMPERATURE
    assert soft_assignment_loss(logits, assignment).item() == pytest.approx(0.623600, abs=6e-7)
    assert soft_assignment_loss(logits.T, assignment).item() == pytest.approx(0.634951, abs=6e-7)
    assert symmetric_soft_assignment_loss(logits, assignment).item() == pytest.approx(0.627351, abs=6e-7)
    entropy = torch.special.entr(assignment).sum(1).mean()
    assert entropy.item() == pytest.approx(0.318036, abs=6e-7)


def test_golden_gradient():
    cosines, assignment = golden()
    cosines.requires_grad_()
    soft_assignment_loss(cosines / TEMPERATURE, assignment).backward()
    expected = torch.tensor([-0.224257, 0.069761, 0.066182, 0.088314], dtype=torch.float64)
    torch.testing.assert_close(4 * TEMPERATURE * cosines.grad[0], expected, rtol=0, atol=6e-7)


def test_rows_and_columns_equal_the_loops():
    logits = 2 * torch.randn(7, 7, dtype=torch.float64)
    assignment = sinkhorn(unit(7, 4) @ unit(7, 4).T)
    rows, columns = looped_rows(logits, assignment), looped_rows(logits.T, assignment.T)
    assert soft_assignment_loss(logits, assignment).item() == pytest.approx(rows)
    assert symmetric_soft_assignment_loss(logits, assignment).item() == pytest.approx((rows + columns) / 2)
    several = torch.stack([logits, logits.flip(0)])
    expected = (soft_assignment_loss(logits, assignment) + soft_assignment_loss(logits.flip(0), assignment)) / 2
    torch.testing.assert_close(soft_assignment_loss(several, assignment), expected)


def test_gradients_are_those_of_finite_differences():
    logits = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    assignment = sinkhorn(unit(5, 4) @ unit(5, 4).T)
    for loss in (soft_assignment_loss, symmetric_soft_assignment_loss):
        assert torch.autograd.gradcheck(lambda values, loss=loss: loss(values, assignment), logits)
    embeddings, keys = unit(2, 5, 3).requires_grad_(), unit(6, 3, seed=1).requires_grad_()
    weights = torch.rand(5, 6, dtype=torch.float64).softmax(1)
    assert torch.autograd.gradcheck(
        lambda z, k: assigned_keys_loss(z, k, weights @ k, TEMPERATURE, max_logits=12), (embeddings, keys)
    )


@pytest.mark.parametrize('max_logits', [1, 40, 10**6])
def test_form_without_logits_has_the_value_and_gradient_of_the_direct_form(max_logits):
    embeddings, keys = unit(3, 8, 16).requires_grad_(), unit(12, 16, seed=1)
    assignment = torch.rand(8, 12, dtype=torch.float64).softmax(1)
    direct = soft_assignment_loss(embeddings @ keys.T / TEMPERATURE, assignment)
    (expected,) = torch.autograd.grad(direct, embeddings)
    loss = assigned_keys_loss(embeddings, keys, assignment @ keys, TEMPERATURE, max_logits)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    torch.testing.assert_close(loss, direct, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-15)


def test_form_without_logits_saves_nothing_of_the_size_of_the_assignment():
    embeddings, keys = unit(1, 32, 4).requires_grad_(), unit(64, 4)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: sizes.append(saved.numel()) or saved, lambda saved: saved
    ):
        assigned_keys_loss(embeddings, keys, unit(32, 4, seed=1))
    assert max(sizes) == 64 * 4


def test_no_gradient_flows_into_the_assignment():
    logits = torch.randn(4, 4, requires_grad=True)
    assignment = torch.eye(4).requires_grad_()
    (soft_assignment_loss(logits, assignment) + symmetric_soft_assignment_loss(logits, assignment)).backward()
    assert assignment.grad is None


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_values_are_those_of_float32_under_autocast(dtype):
    embeddings, keys = unit(1, 8, 32).to(dtype), unit(8, 32, seed=1).to(dtype)
    assignment = torch.eye(8)
    exact = embeddings.double() @ keys.double().T / TEMPERATURE
    expected = soft_assignment_loss(exact, assignment.double()).float()
    with torch.autocast('cpu', torch.bfloat16):
        loss = assigned_keys_loss(embeddings, keys, keys, TEMPERATURE)
        direct = soft_assignment_loss(exact.float(), assignment)
        symmetric = symmetric_soft_assignment_loss(exact.float(), assignment)
    assert loss.dtype == direct.dtype == symmetric.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(direct, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(('size', 'start', 'floor'), [(128, 4.852, 2.436), (1024, 6.931, 4.442)])
def test_reference_values_of_uniform_logits_and_of_orthogonal_negatives(size, start, floor):
    uniform = torch.full((size, size), 1 / size)
    assert soft_assignment_loss(torch.zeros(size, size), uniform).item() == pytest.approx(start, abs=6e-4)
    logits = torch.eye(size) / TEMPERATURE
    assert soft_assignment_loss(logits, torch.eye(size)).item() == pytest.approx(floor, abs=6e-4)


def step(rank, world_size, symmetric, keys_with_gradient):
    """Mean loss, and gradients of own rows averaged as DistributedDataParallel does."""
    embeddings, keys = unit(12, 6)[rank::world_size].requires_grad_(), unit(12, 6, seed=1)
    own_keys = keys[rank::world_size].clone().requires_grad_(keys_with_gradient)
    if keys_with_gradient:
        gathered, _ = gather_with_gradient(own_keys)
        keys = gathered.unflatten(0, (get_world_size(), -1)).transpose(0, 1).flatten(0, 1)
    assignment = sinkhorn(unit(12, 4, seed=2)[rank::world_size] @ unit(12, 4, seed=3).T)
    if symmetric:
        loss = symmetric_soft_assignment_loss(embeddings @ keys.T / TEMPERATURE, assignment)
    else:
        loss = assigned_keys_loss(embeddings, keys, assignment @ keys, TEMPERATURE)
    (loss / world_size).backward()
    return loss.item(), embeddings.grad, own_keys.grad


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('keys_with_gradient', [False, True])
@pytest.mark.parametrize('world_size', [2, 4])
def test_processes_have_the_gradient_of_one_process(symmetric, keys_with_gradient, world_size):
    loss, gradient, key_gradient = step(0, 1, symmetric, keys_with_gradient)
    ranks = run_distributed(step, symmetric, keys_with_gradient, world_size=world_size)
    assert sum(rank[0] for rank in ranks) / world_size == pytest.approx(loss, rel=1e-12)
    for number, (_, own_gradient, own_key_gradient) in enumerate(ranks):
        torch.testing.assert_close(own_gradient, gradient[number::world_size], rtol=1e-10, atol=1e-14)
        if keys_with_gradient:
            torch.testing.assert_close(own_key_gradient, key_gradient[number::world_size], rtol=1e-10, atol=1e-14)


def test_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r'logits \(3, 4\) and assignment \(3, 3\) differ'):
        soft_assignment_loss(torch.ones(3, 4), torch.ones(3, 3))
    with pytest.raises(ValueError, match=r'expected \(..., n, d\), \(N, d\) and \(n, d\)'):
        assigned_keys_loss(torch.ones(3, 4), torch.ones(5, 3), torch.ones(3, 4))
