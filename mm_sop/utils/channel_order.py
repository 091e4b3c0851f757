"""Finds the order of color channels that a network takes."""

from collections.abc import Iterator

from mmengine.config import Config

from mm_sop.utils.failures import UserError

# Keys of data preprocessors of MMPretrain and MMDetection that reverse the channels.
_REVERSING = ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr')


class ChannelOrderError(UserError, ValueError):
    """Loading and preprocessing contradict each other; the message says how."""


def network_order(config: Config) -> str:
    """Find the channel order that the network of a config takes: that of loading, unless the preprocessor reverses it.

    It is ``'rgb'`` or ``'bgr'``. Without training data, images are assumed to be loaded as BGR; without a data
    preprocessor, the network is assumed to take RGB.

    Raises:
        ChannelOrderError: Images are loaded in several orders, or converted to the order that they have already.
    """
    loaded = loading_order(config.get('train_dataloader'))
    settings = find_preprocessor(config)
    if not settings:
        return 'rgb'
    reverses = [key for key in _REVERSING if settings.get(key)]
    target = 'bgr' if 'rgb_to_bgr' in reverses else 'rgb'
    if reverses and loaded == target:
        raise ChannelOrderError(
            f"images are loaded as {loaded.upper()} (channel_order='{loaded}'), but the data preprocessor has "
            f'{reverses[0]}=True, which would give the network the other order: set {reverses[0]}=False, or leave '
            'channel_order out'
        )
    return target if reverses else loaded


def loading_order(loading: dict | list | None) -> str:
    """Find the channel order in which the pipelines anywhere in a config load images, ``'bgr'`` by default.

    Raises:
        ChannelOrderError: They load images in different orders.
    """
    orders = set(_find_orders(loading or {}))
    if len(orders) > 1:
        raise ChannelOrderError('images are loaded in several orders of channels: give all loaders one channel_order')
    return orders.pop() if orders else 'bgr'


def _find_orders(tree: dict | list | tuple) -> Iterator[str]:
    if isinstance(tree, dict):
        # `LoadPicture` stands in the configs of checkpoints that were written before it was renamed.
        if str(tree.get('type')).split('.')[-1].startswith(('LoadImage', 'LoadPicture')):
            yield tree.get('channel_order', 'bgr')
        tree = list(tree.values())
    for each in tree:
        if isinstance(each, (dict, list, tuple)):
            yield from _find_orders(each)


def find_preprocessor(config: Config) -> dict:
    """Return the settings of the data preprocessor, from the model or from the top level of a config."""
    return dict(config.model.get('data_preprocessor') or config.get('data_preprocessor') or {})
