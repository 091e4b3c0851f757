"""Random draws that are equal on every process and continue after a checkpoint."""

import torch
from torch import Tensor, nn

_LARGEST_SEED = 2**62


class SharedRandom(nn.Module):
    """Source of random generators that depend only on a seed and the number of draws so far.

    The seed is a buffer: it is part of the state dict and of the broadcast of the initial model, so all processes draw
    the same numbers, whatever their random states are. Draws are counted on the host; a step needs no synchronization
    with the device.
    """

    seed: Tensor
    num_draws: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('seed', torch.randint(_LARGEST_SEED, ()))
        self.register_buffer('num_draws', torch.zeros((), dtype=torch.int64))
        self._seed: int | None = None
        self._num_draws = 0

    @property
    def draws_so_far(self) -> int:
        """Number of generators created so far."""
        return self._num_draws

    def next_generator(self) -> torch.Generator:
        """Create the generator for the next draw, on the device of the module."""
        if self._seed is None:
            self._seed = int(self.seed)
        generator = torch.Generator(self.seed.device)
        generator.manual_seed((self._seed + self._num_draws) % _LARGEST_SEED)
        self._num_draws += 1
        self.num_draws.fill_(self._num_draws)
        return generator

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._seed = None
        self._num_draws = int(self.num_draws)

    def extra_repr(self) -> str:
        return f'draws_so_far={self._num_draws}'
