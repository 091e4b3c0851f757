"""Augmentation of batches against loops in float64 and against that of the host."""

import colorsys
import math

import numpy as np
import pytest
import torch
from testing.sample_images import smooth_image
from torch.utils._python_dispatch import TorchDispatchMode

from mm_sop.datasets.transforms.multi_view import Augmentation
from mm_sop.functional import augmentation
from mm_sop.functional.augmentation import (
    BLUR_SIGMA,
    COLOR_ORDER,
    COLOR_ORDERS,
    FLIP,
    GRAYSCALE,
    HUE,
    MAX_BLUR_SIGMA,
    NEUTRAL_PARAMETERS,
    SOLARIZE_THRESHOLD,
    augment,
)

ORDER_OF = {number: order for order, number in COLOR_ORDERS.items()}


def sample_images(number=1, height=48, width=40, channels=3):
    """Half smooth, half noise, so that strong colors, ties and flat areas occur: (N, C, H, W)."""
    rng = np.random.default_rng(height)
    images = rng.integers(0, 256, (number, height, width, channels), dtype=np.uint8)
    images[:, : height // 2] = np.asarray(smooth_image((width, height)))[: height // 2, :, :channels]
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def parameters_of(number=1, **columns):
    parameters = torch.tensor([NEUTRAL_PARAMETERS] * number)
    for name, values in columns.items():
        parameters[:, getattr(augmentation, name)] = torch.as_tensor(values, dtype=torch.float32)
    return parameters


def drawn_parameters(number):
    """As in the recipes, with every color order in turn."""
    rng = np.random.default_rng(0)
    return parameters_of(
        number,
        FLIP=rng.integers(2, size=number),
        BRIGHTNESS=rng.uniform(0.6, 1.4, number),
        CONTRAST=rng.uniform(0.6, 1.4, number),
        SATURATION=rng.uniform(0.8, 1.2, number),
        HUE=rng.uniform(-0.1, 0.1, number),
        COLOR_ORDER=[[*ORDER_OF][index % 24] for index in range(number)],
        GRAYSCALE=rng.random(number) < 0.2,
        BLUR_SIGMA=rng.uniform(0.1, 2.0, number) * (rng.random(number) < 0.5),
        SOLARIZE_THRESHOLD=np.where(rng.random(number) < 0.2, 128, 256),
    )


def differences(images, parameters, reference):
    """Absolute differences of gray levels from a reference that takes an (H, W, C) image and a row of parameters."""
    pairs = zip(images, parameters, augment(images, parameters), strict=True)
    return np.stack(
        [
            np.abs(result.permute(1, 2, 0).numpy() - reference(np.ascontiguousarray(image.permute(1, 2, 0)), row))
            for image, row, result in ((image, row.tolist(), result) for image, row, result in pairs)
        ]
    )


def loop(image, row):
    """Definition of the augmentation, pixel by pixel in float64."""
    height, width, _ = image.shape
    pixels = [[[float(value) for value in image[y, x]] for x in range(width)] for y in range(height)]

    def change(function, rounding):
        for line in pixels:
            line[:] = [[rounding(min(max(value, 0.0), 255.0)) for value in function(*pixel)] for pixel in line]

    def luma(blue, green, red):
        return 0.114 * blue + 0.587 * green + 0.299 * red

    def turn(blue, green, red):
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        return colorsys.hsv_to_rgb((hue + row[HUE]) % 1, saturation, value)[::-1]

    if row[FLIP]:
        pixels = [line[::-1] for line in pixels]
    for operation in ORDER_OF[int(row[COLOR_ORDER])]:
        factor = row[1 + operation]
        mean = round(sum(luma(*pixel) for line in pixels for pixel in line) / (height * width))
        if operation == 0:
            change(lambda *pixel, f=factor: [f * value for value in pixel], math.floor)
        elif operation == 1:
            change(lambda *pixel, f=factor, m=mean: [m + f * (value - m) for value in pixel], math.floor)
        elif operation == 2:
            change(lambda *pixel, f=factor: [luma(*pixel) + f * (value - luma(*pixel)) for value in pixel], round)
        elif factor:
            change(turn, round)
    if row[GRAYSCALE]:
        change(lambda *pixel: [luma(*pixel)] * 3, round)
    if row[BLUR_SIGMA]:
        radius = round(6 * row[BLUR_SIGMA] + 1) // 2
        weights = {d: math.exp(-0.5 * (d / row[BLUR_SIGMA]) ** 2) for d in range(-radius, radius + 1)}
        total = sum(weights.values()) ** 2
        reflect = [lambda p, side=side: min(abs(p), 2 * (side - 1) - abs(p)) for side in (height, width)]
        blurred = [[[0.0] * 3 for _ in range(width)] for _ in range(height)]
        for y in range(height):
            for x in range(width):
                for dy, vertical in weights.items():
                    for dx, horizontal in weights.items():
                        source = pixels[reflect[0](y + dy)][reflect[1](x + dx)]
                        for c in range(3):
                            blurred[y][x][c] += vertical * horizontal * source[c] / total
        pixels = blurred
        change(lambda *pixel: pixel, round)
    threshold = row[SOLARIZE_THRESHOLD]
    change(lambda *pixel: [value if value < threshold else 255 - value for value in pixel], round)
    return np.array(pixels)


def on_the_host(image, row):
    """Augmentation of the processes that load images."""
    order = ORDER_OF[int(row[COLOR_ORDER])]
    drawn = row[FLIP] > 0, order, tuple(row[1:5]), row[GRAYSCALE] > 0, row[BLUR_SIGMA], row[SOLARIZE_THRESHOLD]
    return Augmentation(*drawn).apply(image)


@pytest.mark.parametrize(
    'column, values, bound',
    [
        ('FLIP', [1], 0),
        ('BRIGHTNESS', [0, 0.4, 1.7], 1),
        ('CONTRAST', [0, 0.4, 1.7], 2),
        ('SATURATION', [0, 0.4, 1.7], 1),
        # Two steps of the hue, of which OpenCV has 256.
        ('HUE', [-0.5, -0.1, 0.003, 0.2], 12),
        ('GRAYSCALE', [1], 1),
        # OpenCV's kernels have 8 bits.
        ('BLUR_SIGMA', [0.2, 0.5, 1.3, 2.0], 1),
        ('SOLARIZE_THRESHOLD', [0, 100, 255], 0),
    ],
)
def test_operations_follow_their_definitions(column, values, bound):
    images = sample_images(len(values), height=9, width=14)
    assert differences(images, parameters_of(len(values), **{column: values}), loop).max() <= bound


def test_all_orders_follow_their_definition():
    errors = differences(sample_images(24, height=8, width=10), drawn_parameters(24), loop)
    assert errors.max() <= 12
    assert errors.mean() <= 0.8


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [32, 96])
def test_equals_the_host(channels, size):
    values = dict(
        FLIP=[0, 1],
        BRIGHTNESS=[0, 0.4321, 1.6789],
        CONTRAST=[0, 0.4321, 1.6789],
        SATURATION=[0, 0.4321, 1.6789],
        HUE=[-0.5, -0.09, 0.003, 0.5],
        GRAYSCALE=[1],
        BLUR_SIGMA=[0.1, 0.3, 0.47, 0.8, 1.1, 1.64, 2.0, MAX_BLUR_SIGMA],
        SOLARIZE_THRESHOLD=[0, 128, 255],
    )
    for column, rows in values.items():
        images = sample_images(len(rows), height=size, width=size - 8, channels=channels)
        errors = differences(images, parameters_of(len(rows), **{column: rows}), on_the_host)
        # Contrast leaves the mean gray level, exactly at the edge of rounding down.
        assert errors.max() <= (column in ('BRIGHTNESS', 'CONTRAST')), column
        assert errors.mean() <= 0.01, column
    errors = differences(sample_images(48, size, channels=channels), drawn_parameters(48), on_the_host)
    assert errors.max() <= 6
    assert errors.mean() <= 0.01


@pytest.mark.parametrize('channels', [1, 3])
def test_neutral_parameters_change_nothing(channels):
    images = sample_images(2, channels=channels)
    assert torch.equal(augment(images, parameters_of(2)), images.float())


def test_images_do_not_depend_on_their_batch():
    images, parameters = sample_images(30), drawn_parameters(30)
    together = augment(images, parameters)
    alone = [augment(images[n : n + 1], parameters[n : n + 1]) for n in range(30)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, augment(images, parameters, chunk_bytes=7 * images[0].numel()))
    assert augment(images[:0], parameters[:0]).shape == (0, *images.shape[1:])


def test_narrow_images_end_the_kernel():
    image = sample_images(1, height=9, width=2)
    result = augment(image, parameters_of(BLUR_SIGMA=2.0))
    assert image.amin() <= result.amin() <= result.amax() <= image.amax()


@pytest.mark.parametrize('precision', ['high', 'medium'])
def test_is_exact_at_any_precision_of_products(precision):
    images, parameters = sample_images(24), drawn_parameters(24)
    expected = augment(images, parameters)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.equal(augment(images, parameters), expected)
    finally:
        torch.set_float32_matmul_precision(before)


class Recorder(TorchDispatchMode):
    """Records operations, except those that only make views, and whatever a device would not like."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self.inexact = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix('aten::')
        if not function.is_view and name != '_unsafe_view':
            self.operations.append(name)
        tensors = [value for value in (*args, result) if isinstance(value, torch.Tensor)]
        self.inexact += [name for tensor in tensors if tensor.dtype == torch.float64]
        if 'mm' in name:
            operands = [tensor for tensor in args[-2:] if tensor.ndim == 3]
            self.inexact += [name for tensor in operands if not torch.equal(tensor.bfloat16().float(), tensor)]
        return result


def test_few_operations_and_no_waiting_for_the_device():
    images, parameters = sample_images(24, height=40), drawn_parameters(24)
    with Recorder() as recorded:
        augment(images, parameters)
    assert recorded.inexact == []
    assert len(recorded.operations) < 220
    waiting = {'_local_scalar_dense', 'nonzero', 'masked_select', 'lift_fresh', 'is_nonzero', 'unique', 'item'}
    assert not waiting & set(recorded.operations)


@pytest.mark.parametrize(
    'images, parameters',
    [
        (sample_images().float(), parameters_of()),
        (sample_images()[0], parameters_of()),
        (sample_images()[:, :2], parameters_of()),
        (sample_images(2), parameters_of(1)),
        (sample_images(), parameters_of()[:, :9]),
        (sample_images(), parameters_of().double()),
    ],
)
def test_refuses_other_shapes_and_dtypes(images, parameters):
    with pytest.raises(ValueError, match='must be'):
        augment(images, parameters)
