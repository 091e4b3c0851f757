"""Loads the projector of a checkpoint, for features between the encoder and the loss."""

from contextlib import ExitStack
from pathlib import Path

import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from mm_sop.encoders.checkpoint import Checkpoint, load_complete, read_checkpoint, strip_prefix
from mm_sop.models.necks import SOPNeck

_ACTIVATIONS = (nn.ReLU, nn.GELU)


class FrozenProjector(nn.Module):
    """The network that follows an encoder in pretraining, in evaluation mode.

    Args:
        neck: A neck on pooled vectors, (n, D) or in tuples, or on feature maps that it pools itself. The prototypes at
            the end of DINO's neck are left out.
    """

    def __init__(self, neck: nn.Module) -> None:
        super().__init__()
        self.neck = getattr(neck, 'projector', neck)
        self.pools = getattr(neck, 'with_avg_pool', False)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> 'FrozenProjector':
        """Stay in evaluation mode, even inside a model that is trained."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Project pooled features of the encoder, (n, D), on the projector's device.

        Returns:
            ``encoding``, the features themselves; ``hidden1``, ``hidden2``, ..., the outputs of the activations; and
            ``embedding``, the output of the projector. In section 3 of "Clustering Properties of Self-Supervised
            Learning" these are H, P and Z.
        """
        hidden = []
        inputs = features[..., None, None] if self.pools else features
        with ExitStack() as stack:
            for module in self.neck.modules():
                if isinstance(module, _ACTIVATIONS):
                    handle = module.register_forward_hook(lambda *call: hidden.append(call[2].clone()))
                    stack.callback(handle.remove)
            output = self.neck(inputs if isinstance(self.neck, SOPNeck) else (inputs,))
        embedding = output if isinstance(output, Tensor) else output[-1]
        taps = {f'hidden{number}': each for number, each in enumerate(hidden, start=1)}
        return dict(encoding=features, **taps, embedding=embedding)


def load_projector(config: Config, checkpoint: str | Path | Checkpoint, prefix: str) -> FrozenProjector | None:
    """Build the projector that belongs to an encoder, on the CPU, or return None if config or checkpoint have none.

    Args:
        config: Config of the pretraining.
        checkpoint: Weights, see :func:`read_checkpoint`; with another projector they raise a :class:`WeightsError`.
        prefix: State-dict key prefix of the encoder, such as ``'teacher.backbone.'``.
    """
    settings = config.model.get('neck')
    if settings is None or not prefix.endswith('backbone.'):
        return None
    prefix = f'{prefix.removesuffix("backbone.")}neck.'
    checkpoint = read_checkpoint(checkpoint)
    state = strip_prefix(checkpoint.state_dict(), prefix)
    if not state:
        return None
    neck = MODELS.build(settings)
    load_complete(neck, state, f'{checkpoint.path} (prefix {prefix!r})')
    return FrozenProjector(neck)
