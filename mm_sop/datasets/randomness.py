"""Random state of Python, NumPy and PyTorch: seeding it for one sample, protecting, saving and restoring it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything_from(*entropy: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch's CPU.

    :class:`numpy.random.SeedSequence` mixes the numbers, so that neighboring tuples yield unrelated streams.

    Args:
        *entropy (int): Non-negative numbers, for example seed, epoch and index. Tuples that differ only in trailing
            zeros yield the same state.

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
    """Restore the global generators on exit, whatever random numbers were drawn inside.

    Args:
        cuda (bool): Whether to also restore the generator of the current CUDA device. Defaults to False.
    """
    state = collect_random_state(cuda)
    try:
        yield
    finally:
        restore_random_state(state)


def collect_random_state(cuda: bool = True) -> dict:
    """Collect the state of all global generators for a checkpoint.

    Args:
        cuda (bool): Whether to include the generator of the current CUDA device, if there is one. Defaults to True.

    Returns:
        dict: ``python``, ``numpy``, ``torch`` and, if included, ``cuda``; it consists of tensors, tuples, strings and
        numbers, so that ``torch.load(weights_only=True)`` reads it.
    """
    numpy = np.random.get_state(legacy=False)
    key, position = numpy['state']['key'], numpy['state']['pos']
    state = dict(
        python=random.getstate(),
        numpy=(
            numpy['bit_generator'],
            torch.from_numpy(key.astype(np.int64)),
            int(position),
            int(numpy['has_gauss']),
            float(numpy['gauss']),
        ),
        torch=torch.get_rng_state(),
    )
    if cuda and torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict) -> None:
    """Set all global generators to a state of :func:`collect_random_state`.

    A CUDA state is ignored if there is no CUDA device.
    """
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    name, key, *rest = state['numpy']
    np.random.set_state((name, key.cpu().numpy().astype(np.uint32), *rest))
    # Checkpoints may have been loaded onto a device, but generator states must be on the CPU.
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())
