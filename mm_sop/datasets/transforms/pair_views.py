"""Transforms of two images that form a positive pair (SePP)."""

from collections.abc import Callable, Sequence

from mmcv.transforms import BaseTransform, Compose
from mmpretrain.registry import TRANSFORMS

from mm_sop.datasets.transforms.multi_view import FastMultiView


@TRANSFORMS.register_module()
class ApplyToPair(BaseTransform):
    """Apply transforms, such as the loading of an image, to both images of a pair.

    **Required Keys:** those of the transforms; ``partner`` (dict with the same keys) in samples that are a pair
    **Modified Keys:** those of the transforms, in both

    Example:
        >>> count = ApplyToPair([lambda results: dict(results, width=len(results['row']))])
        >>> count(dict(row='abc', partner=dict(row='ab')))
        {'row': 'abc', 'width': 3, 'partner': {'row': 'ab', 'width': 2}}
    """

    def __init__(self, transforms: Sequence[dict | Callable]) -> None:
        self.transforms = Compose(transforms)

    def transform(self, results: dict) -> dict:
        partner = results.pop('partner', None)
        results = self.transforms(results)
        if partner is not None:
            results['partner'] = self.transforms(partner)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transforms})'


@TRANSFORMS.register_module()
class PairMultiView(FastMultiView):
    """Create views of one image, or of the two images of a pair, each with the pipeline of its position.

    With ``partner_views='odd'``, view 0 shows the first image, view 1 its partner, and further views, such as local
    crops, show them in turn, so that both images have equally many. With ``'last'``, only the last view shows the
    partner. Samples without ``partner`` are treated as by :class:`FastMultiView`, with the same random numbers.

    **Required Keys:** ``img``; ``partner`` (dict with ``img``) in samples that are a pair
    **Modified Keys:** ``img`` (list of views)
    **Deleted Keys:** ``partner``

    Args:
        transforms (Sequence[Sequence[dict]]): Pipelines, as for :class:`FastMultiView`.
        num_views (int | Sequence[int]): Number of views of each pipeline.
        augment_on (str): ``'host'`` or ``'device'``, as for :class:`FastMultiView`.
        partner_views (str): ``'odd'`` or ``'last'``.

    Raises:
        ValueError: ``partner_views`` is neither, or there are fewer than two views.

    Example:
        >>> import numpy as np
        >>> views = PairMultiView([[dict(type='mmpretrain.FastRandomResizedCrop', scale=32)]], num_views=4)
        >>> first, second = np.zeros((48, 48, 3), np.uint8), np.ones((48, 48, 3), np.uint8)
        >>> [int(view.max()) for view in views(dict(img=first, partner=dict(img=second)))['img']]
        [0, 1, 0, 1]
    """

    def __init__(
        self,
        transforms: Sequence[Sequence[dict]],
        num_views: int | Sequence[int],
        augment_on: str = 'host',
        partner_views: str = 'odd',
    ) -> None:
        super().__init__(transforms, num_views, augment_on)
        if partner_views not in ('odd', 'last'):
            raise ValueError(f"partner_views={partner_views!r} of PairMultiView: expected 'odd' or 'last'")
        if len(self.transforms) < 2:
            raise ValueError(f'PairMultiView needs at least two views, got num_views={num_views}')
        self.partner_views = partner_views

    def sources(self, results: dict) -> list[dict]:
        """The sample that each view shows."""
        partner = results.pop('partner', results)
        positions = range(len(self.views))
        of_partner = positions[1::2] if self.partner_views == 'odd' else positions[-1:]
        return [partner if position in of_partner else results for position in positions]
