"""Augmentation of whole batches on the device, from parameters that the host has drawn."""

from itertools import permutations

import torch
from torch import Tensor

# Columns of the parameters of an image; the rest is reserved and 0.
FLIP = 0
BRIGHTNESS, CONTRAST, SATURATION, HUE = 1, 2, 3, 4
COLOR_ORDER = 5
GRAYSCALE = 6
BLUR_SIGMA = 7
SOLARIZE_THRESHOLD = 8
NUM_PARAMETERS = 12


def _encode(order: tuple[int, ...]) -> int:
    """Three slots for the operations before the hue and three for those after it, in base 4; 3 is an empty one."""
    before, after = order[: order.index(3)], order[order.index(3) + 1 :]
    slots = [*before, *(3,) * (3 - len(before)), *after, *(3,) * (3 - len(after))]
    return sum(operation << 2 * slot for slot, operation in enumerate(slots))


# Numbers of the color orders, from which the device finds the operations. Operations: 0 brightness, 1 contrast,
# 2 saturation, 3 hue.
COLOR_ORDERS = {order: _encode(order) for order in permutations(range(4))}
# Parameters that change nothing.
NEUTRAL_PARAMETERS = (0.0, 1.0, 1.0, 1.0, 0.0, float(COLOR_ORDERS[0, 1, 2, 3]), 0.0, 0.0, 256.0, 0.0, 0.0, 0.0)
# Limits the size of the kernels' tables.
MAX_BLUR_SIGMA = 5.0

_MAX_RADIUS = round(6 * MAX_BLUR_SIGMA + 1) // 2
# OpenCV's fixed-point weights of blue, green and red in the gray value.
_GRAY_WEIGHTS = (3735 / 2**15, 19235 / 2**15, 9798 / 2**15)


@torch.no_grad()
def augment(images: Tensor, parameters: Tensor, chunk_bytes: int = 2**26) -> Tensor:
    """Flip, change colors, make gray, blur and solarize, in this order, every image with its own parameters.

    Repeats the 8-bit arithmetic of OpenCV and of the transforms on the host, after each operation too; the results
    differ where a draw, rounded to float32, crosses a gray level. Never waits for the device. Integers are exact in
    float32, so that an image does not depend on its batch, nor on the precision of matrix products.

    Peak memory is 23 times that of the uint8 images of a chunk (3.5 MB for an image of 224 pixels, 1.5 GB by default),
    besides the result.

    Args:
        images: BGR or gray images, uint8, (B, 3, H, W) or (B, 1, H, W). Gray images have neither saturation nor hue.
        parameters: (B, 12), float32: flip (0 or 1), factors of brightness, contrast and saturation, shift of the hue
            as a fraction of the color circle, number in ``COLOR_ORDERS``, grayscale (0 or 1), standard deviation of
            the blur in pixels (0 to 5; the kernel ends at 3 standard deviations and before the image's side), threshold
            from which values are inverted (256 for none).
        chunk_bytes: Bytes of the images that are augmented at once; the default holds 445 images of 224 pixels.

    Returns:
        Gray levels, integers from 0 to 255 in float32, with the shape of the images.

    Raises:
        ValueError: If a shape or a dtype does not fit.

    Example:
        >>> images = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
        >>> parameters = torch.tensor([NEUTRAL_PARAMETERS])
        >>> parameters[:, BRIGHTNESS] = 1.5
        >>> augment(images, parameters)[0, :, 0, 0]
        tensor([150., 150., 150.])
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f'images must be uint8 of shape (B, 3, H, W) or (B, 1, H, W), got {images.dtype}, {(*images.shape,)}'
        )
    if parameters.dtype != torch.float32 or parameters.shape != (len(images), NUM_PARAMETERS):
        raise ValueError(
            f'parameters must be float32 of shape {(len(images), NUM_PARAMETERS)}, '
            f'got {parameters.dtype}, {(*parameters.shape,)}'
        )
    size = max(1, chunk_bytes // images[0].numel()) if len(images) else 1
    with torch.autocast(images.device.type, enabled=False):
        chunks = [*map(_augment, images.split(size), parameters.split(size))]
    return torch.cat(chunks) if len(chunks) > 1 else chunks[0]


def _augment(images: Tensor, parameters: Tensor) -> Tensor:
    columns = parameters[:, :, None, None, None]  # columns[:, X] is (B, 1, 1, 1)
    images = torch.where(columns[:, FLIP] > 0, images.flip(-1), images).float()
    images = _change_colors(images, parameters)
    images = torch.where(columns[:, GRAYSCALE] > 0, _gray(images), images)
    images = _blur(images, parameters[:, BLUR_SIGMA])
    return torch.where(images < columns[:, SOLARIZE_THRESHOLD], images, 255 - images)


def _change_colors(images: Tensor, parameters: Tensor) -> Tensor:
    """Apply the color operations in the order of each image; changes ``images``.

    Brightness, contrast and saturation have one affine form. Images of all orders pass three of these, the hue, and
    three again; an image skips those that its order does not need.
    """
    slots = torch.arange(6, device=images.device)
    operations = (parameters[:, COLOR_ORDER, None].long() >> 2 * slots) & 3  # (B, 6), 3 is none
    factors = torch.cat([parameters[:, BRIGHTNESS : SATURATION + 1], parameters.new_ones(len(images), 1)], dim=1)
    factors = factors.gather(1, operations)[:, :, None, None, None]
    operations = operations[:, :, None, None, None]
    mean_weights, gray_weights = ((1 - factors) * (operations == operation) for operation in (1, 2))
    # The host rounds saturation to the nearest level and brightness and contrast down.
    roundings = (operations == 2) * 0.5
    for step in range(operations.shape[1]):
        if step == 3 and images.shape[1] == 3:
            images = _shift_hue(images, parameters[:, HUE, None, None, None])
        gray = _gray(images)
        # Sums of large images are not exact in float32.
        mean = (gray.sum(dim=(2, 3), keepdim=True, dtype=torch.int64) / gray.shape[2:].numel()).round_()
        offset = torch.addcmul(roundings[:, step], mean, mean_weights[:, step])
        offset = torch.addcmul(offset, gray, gray_weights[:, step])
        torch.addcmul(offset, images, factors[:, step], out=images)
        images.clamp_(0, 255.5).floor_()
    return images


def _gray(images: Tensor) -> Tensor:
    """Gray value as OpenCV rounds it, (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    blue, green, red = images.split(1, dim=1)
    gray = (blue * _GRAY_WEIGHTS[0]).add_(green, alpha=_GRAY_WEIGHTS[1]).add_(red, alpha=_GRAY_WEIGHTS[2])
    return gray.add_(0.5).floor_()


def _shift_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Shift the hue by a fraction of the color circle, (B, 1, 1, 1), through OpenCV's 8-bit HSV; 0 changes nothing."""
    blue, green, red = images.split(1, dim=1)
    value = images.amax(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    # OpenCV multiplies by tables of reciprocals with 12 bits after the point.
    hue = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)),
    )
    hue.mul_((2**20 / (6 * chroma).clamp_(min=1)).round_()).add_(2**11).mul_(2**-12).floor_()
    reciprocal = (255 * 2**12 / value.clamp(min=1)).round_()
    saturation = reciprocal.mul_(chroma).add_(2**11).mul_(2**-12).floor_()
    # OpenCV writes the circle as 256 values and reads it as 255.
    hue.add_((shifts * 255).trunc()).remainder_(256).mul_(6 / 255)
    # A channel is full while the hue is within one sixth of the circle of its own, and falls over the next sixth.
    sixths = torch.arange(1, 6, 2, device=images.device)[:, None, None]  # blue, green, red
    fall = (hue + sixths).remainder_(6).sub_(2).abs_().clamp_(1, 2).sub_(2)  # (B, 3, H, W), from -1 to 0
    shifted = fall.mul_(saturation.mul_(value).mul_(1 / 255)).add_(value).round_()
    return torch.where(shifts != 0, shifted, images)


def _blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Blur with ``cv2.GaussianBlur(image, (0, 0), sigma)`` in its arithmetic of 8 + 8 bits, as products of matrices.

    All operands are integers up to 256, which TF32 and bfloat16 hold exactly.
    """
    batch_size, channels, height, width = images.shape
    columns = _blur_matrices(sigmas, height)
    rows = columns if width == height else _blur_matrices(sigmas, width)
    images = images.view(batch_size, channels * height, width) @ rows.mT
    images = images.view(batch_size * channels, height, width)
    columns = columns[:, None].expand(-1, channels, -1, -1).reshape(-1, height, height)
    high = (images / 256).floor_()
    low = images.sub_(high, alpha=256)
    blurred = torch.bmm(columns, high).baddbmm_(columns, low, beta=256)
    return blurred.add_(2**15).mul_(2**-16).floor_().view(batch_size, channels, height, width)


def _blur_matrices(sigmas: Tensor, side: int) -> Tensor:
    """Weights of input j in output i, times 256, with reflected borders, (B, side, side)."""
    weights = _blur_weights(sigmas, min(side, _MAX_RADIUS + 1))
    return weights[:, _distances(side, sigmas.device).clamp(max=weights.shape[1] - 1)].sum(dim=1)


def _distances(side: int, device: torch.device) -> Tensor:
    """Distance of output i from input j and from its reflections at both ends, ``side`` for none, (3, side, side)."""
    j = torch.arange(side, device=device)
    i = j[:, None]
    left, right = torch.where(j > 0, i + j, side), torch.where(j < side - 1, 2 * (side - 1) - i - j, side)
    return torch.stack([(i - j).abs(), left, right])


def _blur_weights(sigmas: Tensor, width: int) -> Tensor:
    """OpenCV's fixed-point kernels by distance from the center, times 256, (B, width + 1); the last weight is 0."""
    distance = torch.arange(width + 1, device=sigmas.device)
    sigmas = sigmas[:, None]
    radii = ((6 * sigmas + 1).round_() / 2).floor_().clamp_(max=width - 1)
    bells = torch.exp((distance / sigmas.clamp(min=1e-3)).square_().mul_(-0.5)).mul_(distance <= radii)
    # Sum of all weights from a distance outwards: (B, D, 1 or D) -> (B, D)
    tails = (bells[:, None] * (distance >= distance[:, None])).sum(dim=-1)
    # From the ends to the center, the rounding error is carried to the next weight.
    tails = (256 * tails / (2 * tails[:, :1] - bells[:, :1])).round_()
    return torch.cat([tails[:, :-1] - tails[:, 1:], tails[:, -1:]], dim=1)
