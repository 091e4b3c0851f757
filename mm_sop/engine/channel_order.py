"""In which order of colour channels a network was, or is to be, trained."""

from collections.abc import Iterator

from mmengine.config import Config

# Keys of data preprocessors of MMPretrain and MMDetection that reverse the channels.
_REVERSING = ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr')


class ChannelOrderError(ValueError):
    """Loading and preprocessing contradict each other; the message says how."""


def network_order(config: Config) -> str:
    """Order of the channels that the network of a config gets: that of loading, reversed where it is preprocessed so.

    Args:
        config: Config with a model. Without training data, pictures are taken to be loaded as BGR; without a data
            preprocessor, whose normalization is then assumed, the network is taken to get RGB.

    Returns:
        ``'rgb'`` or ``'bgr'``.

    Raises:
        ChannelOrderError: Pictures are loaded in several orders, or converted to the order that they have.
    """
    loaded = loading_order(config.get('train_dataloader'))
    settings = find_preprocessor(config)
    if not settings:
        return 'rgb'
    reverses = [key for key in _REVERSING if settings.get(key)]
    target = 'bgr' if 'rgb_to_bgr' in reverses else 'rgb'
    if reverses and loaded == target:
        raise ChannelOrderError(
            f"pictures are loaded as {loaded.upper()} (channel_order='{loaded}'), but the data preprocessor has "
            f'{reverses[0]}=True, which would give the network the other order: set {reverses[0]}=False, or leave '
            'channel_order out'
        )
    return target if reverses else loaded


def loading_order(loading: dict | list | None) -> str:
    """Order of the channels in which pipelines somewhere in a config load pictures, ``'bgr'`` unless they say other.

    Raises:
        ChannelOrderError: They have different ones.
    """
    orders = set(_find_orders(loading or {}))
    if len(orders) > 1:
        raise ChannelOrderError('pictures are loaded in several orders of channels: give all loaders one channel_order')
    return orders.pop() if orders else 'bgr'


def _find_orders(tree: dict | list | tuple) -> Iterator[str]:
    if isinstance(tree, dict):
        if str(tree.get('type')).split('.')[-1].startswith(('LoadPicture', 'LoadImage')):
            yield tree.get('channel_order', 'bgr')
        tree = list(tree.values())
    for each in tree:
        if isinstance(each, (dict, list, tuple)):
            yield from _find_orders(each)


def find_preprocessor(config: Config) -> dict:
    """Settings of a config's data preprocessor, wherever they stand."""
    return dict(config.model.get('data_preprocessor') or config.get('data_preprocessor') or {})
