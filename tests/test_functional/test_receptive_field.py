import pytest
import torch
from torch import nn
from torch.nn import functional

from mm_sop.functional import check_receptive_field, receptive_field


def support(network, side):
    """Side of the square of input pixels that move the middle cell."""
    for parameter in network.parameters():
        nn.init.constant_(parameter, 1.0)
    image = torch.ones(1, 1, side, side, requires_grad=True)
    output = network(image)
    output[0, 0, output.shape[2] // 2, output.shape[3] // 2].backward()
    touched = image.grad[0, 0].nonzero()
    heights = touched.max(0).values - touched.min(0).values + 1
    assert heights[0] == heights[1]
    return heights[0].item()


class Branches(nn.Module):
    """Two branches of different fields, then a global vector."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(1, 2, 5, stride=2, padding=2)
        self.narrow = nn.Conv2d(1, 2, 1, stride=2)
        self.head = nn.Linear(2, 3)

    def forward(self, image):
        local = functional.relu(self.wide(image) + self.narrow(image))
        return local, self.head(local.mean((2, 3)))


@pytest.mark.parametrize(
    ('layers', 'expected'),
    [
        ([nn.Conv2d(1, 1, 3, padding=1)], (3, 1)),
        ([nn.Conv2d(1, 1, 7, stride=2), nn.MaxPool2d(3, 2), nn.Conv2d(1, 1, 1, stride=2)], (11, 8)),
        ([nn.Conv2d(1, 1, 3, dilation=2, padding=2), nn.AvgPool2d(2), nn.Conv2d(1, 1, 3)], (10, 2)),
    ],
)
def test_kernels_strides_and_dilations(layers, expected):
    network = nn.Sequential(*layers)
    assert receptive_field(network) == expected
    if not any(isinstance(layer, nn.MaxPool2d) for layer in layers):
        assert support(network, 40) == expected[0]


def test_the_larger_branch_counts_and_global_vectors_do_not():
    assert receptive_field(Branches()) == (5, 2)
    assert receptive_field(nn.Conv2d(2, 1, 3), start=(5, 2)) == (9, 2)


class Other(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(1, 1, 3, stride=2)

    def forward(self, image):
        return self.function(self.conv, image)


class Lone(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, image):
        return self.layer(*[image] * (3 if isinstance(self.layer, nn.MultiheadAttention) else 1))


@pytest.mark.parametrize(
    ('function', 'message'),
    [
        (lambda conv, image: conv(image).mean((2, 3)), 'every output sees the whole image'),
        (lambda conv, image: conv(image) + image, r'branches with jumps \[1, 2\] meet'),
        (lambda conv, image: functional.interpolate(conv(image), scale_factor=2), 'interpolate at .* not understood'),
        (lambda conv, image: conv(image)[:, :, ::2, ::2], 'getitem at .* not understood'),
        (lambda conv, image: conv(image) * conv(image).amax((2, 3), keepdim=True), 'amax at .* not understood'),
        (lambda conv, image: torch.roll(conv(image), 1, 2), 'roll at .* not understood'),
        (lambda conv, image: conv(image) @ conv(image).mT, 'matmul at .* not understood'),
    ],
)
def test_refuses_what_it_does_not_understand(function, message):
    with pytest.raises(ValueError, match=message):
        receptive_field(Other(function))
    with pytest.raises(ValueError, match='is not square'):
        receptive_field(nn.Sequential(nn.Conv2d(1, 1, (1, 3))))


@pytest.mark.parametrize(
    'layer',
    [nn.Upsample(scale_factor=2), nn.PixelShuffle(1), nn.PixelUnshuffle(2), nn.Unfold(3), nn.MultiheadAttention(4, 1)],
)
def test_refuses_layers_that_move_places(layer):
    with pytest.raises(ValueError, match=f'{type(layer).__name__} at .* is not understood'):
        receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3), Lone(layer)))


def test_selected_outputs_and_activations_keep_the_field():
    network = Other(lambda conv, image: functional.gelu([conv(image)][0][:, None].clone()[:, 0]))
    assert receptive_field(network) == (3, 2)


def test_declared_fields_are_checked_and_gaps_reported():
    assert check_receptive_field(Branches(), 5).jump == 2
    with pytest.raises(ValueError, match='receptive field of 5 pixels .jump 2., declared are 7'):
        check_receptive_field(Branches(), 7)
    with pytest.warns(UserWarning, match='field of 1 pixels is smaller than the jump of 2'):
        check_receptive_field(nn.Sequential(nn.Conv2d(1, 1, 1, stride=2)), None)


def test_checks_of_shapes_are_passed_over():
    assert receptive_field(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), nn.ReLU())) == (3, 1)
