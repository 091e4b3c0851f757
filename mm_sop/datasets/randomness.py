"""Random state of Python, NumPy and PyTorch: seeding it for one sample, protecting, saving and restoring it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything_from(*entropy: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch's CPU.

    :class:`numpy.random.SeedSequence` mixes the numbers (non-negative, such as seed, epoch and index), so that
    neighboring tuples yield unrelated streams. Tuples that differ only in trailing zeros yield the same state.

    Example:
        >>> seed_everything_from(0, 1, 2)
        >>> first = np.random.random()
        >>> seed_everything_from(0, 1, 2)
        >>> np.random.random() == first
        True
    """
    words = np.random.SeedSequence(entropy).generate_state(4)
    # As bytes, which Python hashes: seeded with equal numbers, Python and NumPy would draw equal random numbers.
    random.seed(words.tobytes())
    np.random.seed(words)
    # torch.manual_seed would also seed the CUDA generators, and is 70 times slower.
    torch.default_generator.manual_seed(int(words[0]))


@contextmanager
def isolated_random_state(cuda: bool = False) -> Iterator[None]:
    """Restore the global generators on exit, with ``cuda`` also that of the current CUDA device."""
    state = collect_random_state(cuda)
    try:
        yield
    finally:
        restore_random_state(state)


def collect_random_state(cuda: bool = True) -> dict:
    """Collect the state of all global generators for a checkpoint, with ``cuda`` also that of the current CUDA device.

    ``python``, ``numpy``, ``torch`` and perhaps ``cuda`` consist of tensors, tuples, strings and numbers, so that
    ``torch.load(weights_only=True)`` reads them.
    """
    state_of_numpy: Any = np.random.get_state()
    name, key, position, has_gauss, gauss = state_of_numpy
    numpy = (name, torch.from_numpy(key.astype(np.int64)), int(position), int(has_gauss), float(gauss))
    state = dict(python=random.getstate(), numpy=numpy, torch=torch.get_rng_state())
    if cuda and torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict) -> None:
    """Set all global generators to a state of :func:`collect_random_state`; CUDA's only if there is a device."""
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    name, key, *rest = state['numpy']
    np.random.set_state((name, key.cpu().numpy().astype(np.uint32), *rest))
    # Checkpoints may have been loaded onto a device, but generator states must be on the CPU.
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())
