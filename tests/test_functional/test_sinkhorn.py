import math

import pytest
import torch
from testing.distributed import run_distributed
from torch.nn.functional import normalize

from mm_sop.functional import sinkhorn

GOLDEN_SCORES = [[1.00, 0.90, 0.70, 0.60], [0.88, 0.99, 0.72, 0.65], [0.71, 0.70, 0.98, 0.85], [0.62, 0.66, 0.86, 1.00]]
GOLDEN = [
    [0.879033, 0.117835, 0.002831, 0.000301],
    [0.099974, 0.893706, 0.005295, 0.001025],
    [0.003265, 0.002648, 0.939332, 0.054755],
    [0.000455, 0.001003, 0.071806, 0.926737],
]


def encodings(size=24, width=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.rand(size, width, generator=generator, dtype=dtype), dim=1)


def looped(scores, epsilon, iterations):
    """The matrix is rewritten entry by entry: by its total, then anchors, then samples, over and over."""
    rows, columns = scores.shape
    matrix = [[math.exp(scores[i, j].item() / epsilon) for j in range(columns)] for i in range(rows)]
    total = sum(map(sum, matrix))
    matrix = [[value / total for value in row] for row in matrix]
    for _ in range(iterations):
        sums = [sum(matrix[i][j] for i in range(rows)) for j in range(columns)]
        matrix = [[matrix[i][j] / sums[j] / columns for j in range(columns)] for i in range(rows)]
        matrix = [[value / sum(row) / rows for value in row] for row in matrix]
    return torch.tensor(matrix, dtype=torch.float64) * rows


def test_golden_assignment():
    assignment = sinkhorn(torch.tensor(GOLDEN_SCORES, dtype=torch.float64))
    torch.testing.assert_close(assignment, torch.tensor(GOLDEN, dtype=torch.float64), rtol=0, atol=6e-7)
    columns = torch.tensor([0.982727, 1.015192, 1.019264, 0.982817], dtype=torch.float64)
    torch.testing.assert_close(assignment.sum(0), columns, rtol=0, atol=6e-7)


@pytest.mark.parametrize(('epsilon', 'iterations'), [(0.05, 3), (0.05, 1), (0.2, 7)])
def test_equals_the_loops_of_the_matrix_form(epsilon, iterations):
    scores = encodings() @ encodings(seed=1).T
    expected = looped(scores, epsilon, iterations)
    torch.testing.assert_close(sinkhorn(scores, epsilon, iterations), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(sinkhorn(scores.float(), epsilon, iterations), expected.float(), rtol=1e-4, atol=1e-7)


def test_rows_sum_to_one_and_constant_and_column_shifts_change_nothing():
    scores = encodings() @ encodings(seed=1).T
    assignment = sinkhorn(scores)
    torch.testing.assert_close(assignment.sum(1), torch.ones(24, dtype=torch.float64))
    columns = -torch.rand(24, dtype=torch.float64)
    for shift in (-0.7, columns):
        torch.testing.assert_close(sinkhorn(scores + shift), assignment, rtol=1e-10, atol=1e-14)
    rows = -torch.rand(24, 1, dtype=torch.float64)
    assert (sinkhorn(scores + rows) - assignment).abs().max() > 1e-6
    torch.testing.assert_close(sinkhorn(scores + rows, iterations=500), sinkhorn(scores, iterations=500))


@pytest.mark.parametrize('cosine', [0.3, 0.8, 0.99])
def test_weight_of_the_sample_itself_is_the_closed_form(cosine):
    scores = torch.full((64, 64), cosine, dtype=torch.float64).fill_diagonal_(1)
    expected = 1 / (1 + 63 * math.exp(-(1 - cosine) / 0.05))
    torch.testing.assert_close(sinkhorn(scores).diagonal(), torch.full((64,), expected, dtype=torch.float64))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_is_finite_and_in_float32_at_the_extremes(dtype):
    uniform = sinkhorn(torch.ones(8, 8, dtype=dtype))
    assert uniform.dtype == torch.float32
    torch.testing.assert_close(uniform, torch.full((8, 8), 1 / 8))
    torch.testing.assert_close(sinkhorn(2 * torch.eye(8, dtype=dtype) - 1), torch.eye(8))


@pytest.mark.parametrize('epsilon', [0.003, 0.01, 0.025])
def test_small_temperatures_underflow_nowhere(epsilon):
    """A column whose cosines are all low, and opposite vectors."""
    scores = torch.tensor([[1.0, -0.1, -1.0], [0.9, -0.1, -1.0], [-1.0, -0.2, 0.3]])
    assignment = sinkhorn(scores, epsilon)
    assert assignment.dtype == torch.float32
    # Shifts of columns change nothing, and keep the loops in range.
    shifted = scores.double() - scores.double().amax(0)
    torch.testing.assert_close(assignment, looped(shifted, epsilon, 3).float(), rtol=1e-4, atol=1e-7)


def test_autocast_and_gradients_are_left_out():
    scores = (encodings() @ encodings(seed=1).T).float().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        assignment = sinkhorn(scores)
    assert torch.equal(assignment, sinkhorn(scores))
    assert assignment.dtype == torch.float32
    assert not assignment.requires_grad


def assign_own_rows(rank, world_size, scores):
    return sinkhorn(scores[rank::world_size]), torch.distributed.group.WORLD.size()


def assign_alone(rank, world_size, scores):
    """Groups of one process each: every process has a batch of its own."""
    groups = [torch.distributed.new_group([number]) for number in range(world_size)]
    return sinkhorn(scores, group=groups[rank])


@pytest.mark.parametrize('world_size', [1, 2, 4])
def test_processes_get_their_rows_of_the_whole_assignment(world_size):
    scores = encodings() @ encodings(seed=1).T
    expected = sinkhorn(scores)
    for rank, (rows, size) in enumerate(run_distributed(assign_own_rows, scores, world_size=world_size)):
        assert size == world_size
        torch.testing.assert_close(rows, expected[rank::world_size], rtol=1e-12, atol=1e-15)


def test_group_limits_the_exchange():
    scores = encodings() @ encodings(seed=1).T
    for rows in run_distributed(assign_alone, scores):
        assert torch.equal(rows, sinkhorn(scores))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((torch.ones(3),), r'matrix of samples by anchors, got shape \(3,\)'),
        ((torch.ones(3, 3), 0.001), 'epsilon >= 0.003'),
        ((torch.ones(3, 3), 0.05, 0), 'iterations >= 1'),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn(*arguments)
