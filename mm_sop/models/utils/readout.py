"""Representations from the last blocks of networks of several libraries."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from mmpretrain.models import ResNet as MMResNet
from mmpretrain.models import VisionTransformer as MMVisionTransformer
from torch import Tensor, nn

from mm_sop.models.utils.tokens import split_features, to_map


class Readout(NamedTuple):
    """Representations of a batch.

    Attributes:
        global_features: The network's output for an image: [CLS], the pooled map or the network's own vector, (B, D).
        summaries: [CLS], or the mean over the map, after each of the last blocks, (B, D').
        maps: Local representations after each of the last blocks, (B, D', h, w).
    """

    global_features: Tensor
    summaries: tuple[Tensor, ...]
    maps: tuple[Tensor, ...]

    @property
    def local_map(self) -> Tensor:
        """Local representations at the end of the network, (B, D, h, w)."""
        return self.maps[-1]


def read_out(network: nn.Module, images: Tensor, num_blocks: int = 1) -> Readout:
    """Run a network of MM-SOP, MMPretrain, timm or torchvision, and collect the outputs of its last blocks.

    Outputs of transformer blocks pass through the final norm, as in DINO's linear evaluation. The blocks of a
    convolutional network are its stages.

    Args:
        network: Backbone, or a timm or torchvision model without its classifier.
        images: Normalized images, (B, C, H, W).
        num_blocks: Number n of last blocks; results are in the order of the network.

    Returns:
        The readout, with n summaries and n maps.

    Raises:
        ValueError: The blocks of this type of network are unknown, or there are fewer than n.
    """
    if hasattr(network, 'forward_intermediates'):
        return _read_timm(network, images, num_blocks)
    blocks, norm = _find_blocks(network)
    if num_blocks > max(1, len(blocks)):
        raise ValueError(
            f'{num_blocks} blocks of {type(network).__name__} cannot be read: it has {len(blocks)} that are known'
        )
    with _recorded([] if num_blocks == 1 and _gives_map(network) else blocks[-num_blocks:]) as outputs:
        output = network(images)
    pairs = [_split(network, norm(block)) for block in outputs] or [_split(network, output)]
    vector = output if isinstance(output, Tensor) else output[-1]
    return Readout(
        vector if vector.ndim == 2 else pairs[-1][0],
        tuple(summary for summary, _ in pairs),
        tuple(to_map(local, images.shape[-2:]) for _, local in pairs),
    )


def _read_timm(network: Any, images: Tensor, num_blocks: int) -> Readout:
    options: dict[str, Any] = dict(indices=num_blocks, norm=True, output_fmt='NCHW')
    # Only some of timm's networks have [CLS] or other prefix tokens, and none declares it.
    with_prefix = 'return_prefix_tokens' in inspect.signature(network.forward_intermediates).parameters
    if with_prefix:
        options['return_prefix_tokens'] = True
    try:
        features, blocks = network.forward_intermediates(images, **options)
    except AssertionError as error:
        raise ValueError(f'{num_blocks} blocks of {type(network).__name__} cannot be read: {error}') from error
    has_cls = with_prefix and getattr(network, 'has_class_token', True)
    maps = tuple(block[0] if isinstance(block, Sequence) else block for block in blocks)
    summaries = tuple(
        block[1][:, 0] if has_cls else grid.mean((2, 3)) for block, grid in zip(blocks, maps, strict=True)
    )
    return Readout(network.forward_head(features, pre_logits=True), summaries, maps)


def _gives_map(network: nn.Module) -> bool:
    """Whether the output itself contains the last local representations, so that the network can be traced."""
    if isinstance(network, MMVisionTransformer):
        return network.out_type == 'raw'
    return isinstance(network, MMResNet) and max(network.out_indices) == network.num_stages - 1


def _split(network: nn.Module, output: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    if getattr(network, 'with_cls_token', True):
        return split_features(output)
    tokens = output if isinstance(output, Tensor) else output[-1]
    return tokens.mean(1), tokens


def _find_blocks(network: Any) -> tuple[Sequence[nn.Module], nn.Module]:
    """Blocks or stages in order, none if unknown, and the norm that follows the last of them."""
    if isinstance(network, MMVisionTransformer):
        return network.layers, network.ln1 if network.final_norm else nn.Identity()
    if isinstance(network, MMResNet):
        return [getattr(network, name) for name in network.res_layers], nn.Identity()
    if hasattr(network, 'encoder') and hasattr(network.encoder, 'ln'):
        return network.encoder.layers, network.encoder.ln
    if hasattr(network, 'layer4'):
        return [getattr(network, f'layer{number}') for number in range(1, 5)], nn.Identity()
    # For other torchvision networks, the last convolutional layer; Swin's maps have channels last before `permute`.
    last = getattr(network, 'permute', getattr(network, 'features', None))
    return [last] if isinstance(last, nn.Module) else [], nn.Identity()


@contextmanager
def _recorded(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    outputs = []
    handles = [module.register_forward_hook(lambda *call: outputs.append(call[2])) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
