import pytest
import torch
from torch.nn.functional import log_softmax, softmax

from mm_sop.functional import dino_loss, dino_targets, update_center


@pytest.mark.parametrize(('student_cells', 'teacher_cells'), [(None, None), (4, None), (None, 4)])
def test_loss_is_the_mean_cross_entropy(student_cells, teacher_cells):
    shapes = [(3, 6) if cells is None else (3, cells, 6) for cells in (student_cells, teacher_cells)]
    logits = torch.randn(shapes[0], dtype=torch.float64, requires_grad=True)
    probs = torch.randn(shapes[1], dtype=torch.float64).softmax(-1)
    slow, terms = 0, 0
    for image in range(3):
        for score in logits[image].view(-1, 6):
            for target in probs[image].view(-1, 6):
                slow = slow - sum(target[k] * log_softmax(score / 0.2, 0)[k] for k in range(6))
                terms += 1
    fast = dino_loss(logits, probs, 0.2)
    torch.testing.assert_close(fast, slow / terms)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (fast, slow / terms)]
    torch.testing.assert_close(*gradients)


def test_targets_are_centered_sharpened_and_constant():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    center = torch.randn(5)
    targets = dino_targets(logits, center, 0.04)
    torch.testing.assert_close(targets, softmax((logits.detach() - center) / 0.04, -1))
    assert not targets.requires_grad
    assert dino_targets(logits.bfloat16(), center, 0.04).dtype == torch.float32


def test_center_is_a_running_mean():
    center = torch.zeros(2)
    for step in range(3):
        center = update_center(center, torch.tensor([1.0, step]), 0.9)
    torch.testing.assert_close(center, torch.tensor([1 - 0.9**3, 0.1 * 0.9 + 0.2]))


def test_large_scores_do_not_overflow():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = dino_loss(logits, torch.tensor([[0.0, 0.0, 1.0]]))
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(1e5))
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize('shapes', [((3, 6), (2, 6)), ((3, 6), (3, 5)), ((3, 2, 6), (3, 2, 6))])
def test_refuses_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match='at most one of them with cells, got'):
        dino_loss(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
