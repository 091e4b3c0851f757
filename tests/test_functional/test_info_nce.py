import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from mm_sop.functional import info_nce_loss

POSITIVES = torch.tensor([4, 0, 2])


def slow_loss(queries, keys, temperature):
    """One softmax for each image and cell."""
    queries, keys = [side if side.ndim == 3 else side[:, None] for side in (queries, keys)]
    num_cells = max(queries.shape[1], keys.shape[1])
    queries, keys = queries.expand(-1, num_cells, -1), keys.expand(-1, num_cells, -1)
    total = 0
    for cell in range(num_cells):
        for image, positive in enumerate(POSITIVES):
            logits = torch.stack(
                [normalize(queries[image, cell], dim=0) @ normalize(key, dim=0) for key in keys[:, cell]]
            )
            total = total + cross_entropy(logits[None] / temperature, positive[None])
    return total / num_cells / len(POSITIVES)


@pytest.mark.parametrize('query_shape', [(3, 6), (3, 5, 6)])
@pytest.mark.parametrize('key_shape', [(7, 6), (7, 5, 6)])
@pytest.mark.parametrize('cells_per_chunk', [None, 2, 5])
def test_equals_a_softmax_for_each_image_and_cell(query_shape, key_shape, cells_per_chunk):
    queries = torch.randn(query_shape, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(key_shape, dtype=torch.float64)
    fast = info_nce_loss(queries, keys, POSITIVES, 0.3, cells_per_chunk)
    slow = slow_loss(queries, keys, 0.3)
    torch.testing.assert_close(fast, slow)
    gradients = [torch.autograd.grad(loss, queries)[0] for loss in (fast, slow)]
    torch.testing.assert_close(*gradients)


def test_keys_are_constant_and_low_precision_is_computed_in_float32():
    queries, keys = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    info_nce_loss(queries, keys, POSITIVES).backward()
    assert keys.grad is None
    with torch.autocast('cpu', torch.bfloat16):
        loss = info_nce_loss(queries, keys, POSITIVES)
    torch.testing.assert_close(loss, info_nce_loss(queries, keys, POSITIVES))


def test_logits_of_all_cells_are_never_held():
    shapes = []

    def pack(tensor):
        shapes.append(tensor.numel())
        return tensor

    queries = torch.randn(3, 40, 2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        info_nce_loss(queries, torch.randn(50, 2), POSITIVES, cells_per_chunk=4).backward()
    assert max(shapes) <= 3 * 4 * 50


def test_refuses_different_numbers_of_cells():
    with pytest.raises(ValueError, match='queries have 4 cells and keys 5'):
        info_nce_loss(torch.zeros(3, 4, 2), torch.zeros(7, 5, 2), POSITIVES)
