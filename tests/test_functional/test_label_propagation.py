import math

import pytest
import torch

from mm_sop.functional.label_propagation import propagate_labels


def loop_propagation(target, context, labels, num_neighbors, radius, temperature):
    """Every place by itself, in float64."""
    frames, _, height, width = context.shape
    result = torch.zeros(labels.shape[1], height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            found = []
            for t in range(frames):
                for v in range(height):
                    for u in range(width):
                        if radius is None or max(abs(v - y), abs(u - x)) <= radius:
                            cosine = torch.cosine_similarity(target[:, y, x], context[t, :, v, u], dim=0)
                            found.append((float(cosine), labels[t, :, v, u]))
            best = sorted(found, key=lambda pair: -pair[0])[:num_neighbors]
            weights = [math.exp(cosine / temperature) for cosine, _ in best]
            result[:, y, x] = sum(w * label for w, (_, label) in zip(weights, best, strict=True)) / sum(weights)
    return result


@pytest.fixture
def frames():
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(6, 4, 5, generator=generator, dtype=torch.float64)
    context = torch.randn(2, 6, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    return target, context, labels / labels.sum(1, keepdim=True)


@pytest.mark.parametrize('num_neighbors, radius', [(1, 1), (5, 2), (3, None), (500, 1)])
def test_labels_equal_the_loop(frames, num_neighbors, radius):
    result = propagate_labels(*frames, num_neighbors, radius, 0.3)
    expected = loop_propagation(*frames, num_neighbors, radius, 0.3)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.sum(0), torch.ones(4, 5))


def test_a_moved_object_is_followed_within_the_radius():
    # Distinct features everywhere: the nearest place is the same place of the scene, moved by two columns.
    scene = torch.randn(16, 6, 8, generator=torch.Generator().manual_seed(0))
    moved = scene.roll(2, dims=2)
    mask = torch.zeros(6, 8)
    mask[2:4, 1:3] = 1
    labels = torch.stack([1 - mask, mask])[None]
    followed = propagate_labels(moved, scene[None], labels, 1, radius=2)[1]
    assert torch.equal(followed[:, 2:], mask.roll(2, dims=1)[:, 2:])
    lost = propagate_labels(moved, scene[None], labels, 1, radius=1)[1]
    assert not torch.equal(lost[:, 2:], mask.roll(2, dims=1)[:, 2:])


def test_equally_similar_places_share_the_vote():
    flat = torch.ones(3, 2, 2)
    labels = torch.eye(4).reshape(1, 4, 2, 2)
    torch.testing.assert_close(propagate_labels(flat, flat[None], labels, 1), torch.full((4, 2, 2), 0.25))


def test_bad_frames_are_refused(frames):
    target, context, labels = frames
    with pytest.raises(ValueError, match=r'\(6, 4, 4\), \(2, 6, 4, 5\)'):
        propagate_labels(target[..., :4], context, labels)
    with pytest.raises(ValueError, match='num_neighbors must be at least 1'):
        propagate_labels(target, context, labels, 0)
