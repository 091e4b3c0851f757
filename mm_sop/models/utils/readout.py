"""What the last blocks of a network see, whichever library it comes from."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from mmpretrain.models import ResNet as MMResNet
from mmpretrain.models import VisionTransformer as MMVisionTransformer
from torch import Tensor, nn

from mm_sop.models.utils.tokens import split_features, to_map


class Readout(NamedTuple):
    """Representations of a batch.

    Attributes:
        global_features: What the network gives for a picture: [CLS], the pooled map or a vector of its own, (B, D).
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
    """Run a network of MM-SOP, MMPretrain, timm or torchvision, and keep what its last blocks give.

    Outputs of transformer blocks pass through the final norm, as in DINO's linear evaluation. The blocks of a
    convolutional network are its stages.

    Args:
        network: Backbone, or a timm or torchvision model without its classifier.
        images: Normalised images, (B, C, H, W).
        num_blocks: Number n of last blocks, the last one last.

    Returns:
        The readout, with n summaries and n maps.

    Raises:
        ValueError: The blocks of such a network are not known, or it has fewer than n.
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


def _read_timm(network: nn.Module, images: Tensor, num_blocks: int) -> Readout:
    options = dict(indices=num_blocks, norm=True, output_fmt='NCHW')
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
    """Whether the output itself has the last local representations; programs can be traced then."""
    if isinstance(network, MMVisionTransformer):
        return network.out_type == 'raw'
    return isinstance(network, MMResNet) and max(network.out_indices) == network.num_stages - 1


def _split(network: nn.Module, output: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    if getattr(network, 'with_cls_token', True):
        return split_features(output)
    tokens = output if isinstance(output, Tensor) else output[-1]
    return tokens.mean(1), tokens


def _find_blocks(network: nn.Module) -> tuple[Sequence[nn.Module], nn.Module]:
    """Blocks or stages in order, none if unknown, and the norm that follows the last of them."""
    if isinstance(network, MMVisionTransformer):
        return network.layers, network.ln1 if network.final_norm else nn.Identity()
    if isinstance(network, MMResNet):
        return [getattr(network, name) for name in network.res_layers], nn.Identity()
    if hasattr(network, 'encoder') and hasattr(network.encoder, 'ln'):
        return network.encoder.layers, network.encoder.ln
    if hasattr(network, 'layer4'):
        return [network.layer1, network.layer2, network.layer3, network.layer4], nn.Identity()
    # Of torchvision's other networks the end of the convolutions; Swin's maps have channels last before `permute`.
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
