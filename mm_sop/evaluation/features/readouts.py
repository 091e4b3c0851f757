"""Readouts: which representations of a network are evaluated, by name."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mm_sop.encoders.encoder import Encoder
from mm_sop.functional.whitening import generalized_mean
from mm_sop.models.utils.readout import Readout, read_out

READOUTS = {
    'global': ('global',),
    'patch': ('patch',),
    'global+patch': ('global', 'patch'),
    'last4': ('block4', 'block3', 'block2', 'block1'),
}
"""Arrays that are concatenated for a readout: ``'global'`` is [CLS] or the pooled map, ``'patch'`` the mean patch token
of the last block, ``'last4'`` the [CLS] tokens or pooled maps of the last four blocks or stages."""

DESCRIPTOR_PARTS = ('global', 'patch', 'gem')
"""Arrays that a descriptor may consist of; ``'gem'`` is the generalized mean of the last map."""

DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16)
"""Types in which networks compute and features are stored."""


def check_readouts(readouts: Sequence[str]) -> None:
    """Raise a ValueError if a name is not in :data:`READOUTS`."""
    unknown = set(readouts) - set(READOUTS)
    if unknown:
        raise ValueError(f'no readout {", ".join(sorted(unknown))}: choose among {", ".join(READOUTS)}')


def arrays_of(readouts: Sequence[str]) -> list[str]:
    """Names of the arrays that several readouts consist of, each once."""
    return list(dict.fromkeys(array for readout in readouts for array in READOUTS[readout]))


def named_array(readout: Readout, name: str) -> Tensor:
    """One array, (B, D), of what a network gives.

    Args:
        readout: Representations of a batch.
        name: One of :data:`DESCRIPTOR_PARTS`, or ``'block1'``, ``'block2'``, ...; block 1 is the last.
    """
    if name == 'global':
        return readout.global_features
    if name == 'patch':
        return readout.local_map.mean((2, 3))
    if name == 'gem':
        return generalized_mean(readout.local_map)
    return readout.summaries[-int(name.removeprefix('block'))]


def encode_arrays(encoder: Encoder, names: Sequence[str], dtype: torch.dtype, batch: dict) -> dict[str, Tensor]:
    """Encode a collated batch into named arrays, (B, D), fp32, on the CPU; see :func:`named_array`.

    Args:
        encoder: The encoder.
        names: Names of the arrays.
        dtype: ``torch.bfloat16`` to compute under autocast.
        batch: ``inputs`` and ``data_samples``.
    """
    with torch.autocast(next(encoder.parameters()).device.type, torch.bfloat16, dtype == torch.bfloat16):
        readout = encoder.read(batch, _num_blocks(names))
        arrays = {name: named_array(readout, name) for name in names}
    return {name: array.float().cpu() for name, array in arrays.items()}


@torch.no_grad()
def distinct_readouts(encoder: Encoder, readouts: Sequence[str], crop_size: int) -> list[str]:
    """Select the readouts that an encoder has and that differ from each other.

    Of some convolutional networks fewer than four stages are known, and the pooled map equals the mean patch.

    Args:
        encoder: The encoder.
        readouts: Names in :data:`READOUTS`.
        crop_size: Side of the images in pixels.
    """
    device = next(encoder.parameters()).device
    probe = torch.linspace(-1, 1, 3 * crop_size**2, device=device).view(1, 3, crop_size, crop_size)
    selected: dict[str, list[Tensor]] = {}
    for readout in readouts:
        names = READOUTS[readout]
        try:
            output = read_out(encoder.network, probe, _num_blocks(names))
        except ValueError:
            continue
        arrays: list[Tensor] = []
        for array in (named_array(output, name) for name in names):
            if not any(_are_equal(array, earlier) for earlier in arrays):
                arrays.append(array)
        if not any(len(arrays) == len(old) and all(map(_are_equal, arrays, old)) for old in selected.values()):
            selected[readout] = arrays
    return list(selected)


def _are_equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.allclose(left, right, atol=1e-5)


def _num_blocks(names: Sequence[str]) -> int:
    return max((int(name.removeprefix('block')) for name in names if name.startswith('block')), default=1)
