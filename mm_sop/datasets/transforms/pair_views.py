"""Transforms of two pictures that are one positive pair (SePP)."""

import copy
from collections.abc import Sequence

from mmcv.transforms import BaseTransform, Compose
from mmpretrain.datasets import MultiView
from mmpretrain.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ApplyToPair(BaseTransform):
    """Apply transforms, such as the loading of a picture, to both pictures of a pair.

    **Required Keys:** those of the transforms; ``partner`` (dict with the same keys) in samples that are a pair

    **Modified Keys:** those of the transforms, in both

    Args:
        transforms (Sequence[dict | callable]): The transforms.
    """

    def __init__(self, transforms: Sequence[dict]) -> None:
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
class PairMultiView(MultiView):
    """Make views of one picture, or of the two pictures of a pair, each with the pipeline of its place.

    With ``partner_views='odd'`` view 0 shows the first picture, view 1 its partner, and further ones, such as local
    crops, show them by turns, so that both pictures have equally many. With ``'last'`` only the last view shows the
    partner. Samples without ``partner`` are treated as by ``MultiView``, with the same random numbers.

    **Required Keys:** ``img``; ``partner`` (dict with ``img``) in samples that are a pair

    **Modified Keys:** ``img`` (list of views)

    **Deleted Keys:** ``partner``

    Args:
        transforms (Sequence[Sequence[dict]]): Pipelines, as for ``MultiView``.
        num_views (int | Sequence[int]): Number of views of each pipeline.
        partner_views (str): ``'odd'`` or ``'last'``. Defaults to ``'odd'``.

    Raises:
        ValueError: ``partner_views`` is neither, or there are fewer than two views.
    """

    def __init__(
        self, transforms: Sequence[Sequence[dict]], num_views: int | Sequence[int], partner_views: str = 'odd'
    ) -> None:
        super().__init__(transforms, num_views)
        if partner_views not in ('odd', 'last'):
            raise ValueError(f"partner_views={partner_views!r} of PairMultiView: expected 'odd' or 'last'")
        if len(self.transforms) < 2:
            raise ValueError(f'PairMultiView needs at least two views, got num_views={num_views}')
        self.partner_views = partner_views

    def transform(self, results: dict) -> dict:
        partner = results.pop('partner', results)
        views = [
            transform(copy.deepcopy(partner if self._shows_partner(place) else results))['img']
            for place, transform in enumerate(self.transforms)
        ]
        results['img'] = views
        return results

    def _shows_partner(self, place: int) -> bool:
        return place % 2 == 1 if self.partner_views == 'odd' else place == len(self.transforms) - 1
