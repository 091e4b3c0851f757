"""Random state of Python, NumPy and PyTorch: seeded for one sample, set aside, saved and restored."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything_from(*entropy: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch's CPU.

    The numbers are mixed by :class:`numpy.random.SeedSequence`, so that neighbouring tuples give unrelated streams.

    Args:
        *entropy (int): Non-negative numbers, for instance seed, epoch and index. Tuples that differ only in zeros at
            the end give the same state.
    """
    words = np.random.SeedSequence(entropy).generate_state(4)
    # As bytes, which Python hashes: from equal numbers the Mersenne Twisters of Python and NumPy draw alike.
    random.seed(words.tobytes())
    np.random.seed(words)
    # torch.manual_seed would reseed the CUDA generators as well, and is 70 times slower.
    torch.default_generator.manual_seed(int(words[0]))


@contextmanager
def isolated_random_state(cuda: bool = False) -> Iterator[None]:
    """Restore the global generators on exit, whatever was drawn inside.

    Args:
        cuda (bool): Restore the generator of the current CUDA device, too. Defaults to False.
    """
    state = collect_random_state(cuda)
    try:
        yield
    finally:
        restore_random_state(state)


def collect_random_state(cuda: bool = True) -> dict:
    """Collect the state of all global generators for a checkpoint.

    Args:
        cuda (bool): Include the generator of the current CUDA device where there is one. Defaults to True.

    Returns:
        dict: ``python``, ``numpy``, ``torch`` and, if included, ``cuda``; made of tensors, tuples, strings and numbers
        only, so that ``torch.load(weights_only=True)`` reads it.
    """
    name, key, position, has_gauss, gauss = np.random.get_state()
    state = dict(
        python=random.getstate(),
        numpy=(name, torch.from_numpy(key.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        torch=torch.get_rng_state(),
    )
    if cuda and torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict) -> None:
    """Set all global generators to a state of :func:`collect_random_state`.

    A CUDA state is left out where there is no CUDA device.
    """
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    name, key, *rest = state['numpy']
    np.random.set_state((name, key.cpu().numpy().astype(np.uint32), *rest))
    # Checkpoints may have been loaded onto a device; generator states live on the CPU.
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())
