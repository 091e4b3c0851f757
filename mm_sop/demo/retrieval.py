"""Instance retrieval in the layout of the revisited Oxford and Paris datasets."""

import pickle
from dataclasses import replace
from pathlib import Path

from mm_sop.demo.assets import Assets, Cutout, Split
from mm_sop.demo.compose import (
    Canvas,
    Range,
    draw_background,
    find_box,
    paint_distractors,
    paint_object,
    paint_occluder,
)
from mm_sop.demo.sets import CompositeSet, CompositeSettings, write_image, write_json

WHOLE = (0.95, 1.0)
# Targeted (object scale, visible fraction); the grade follows from the rendered image.
TARGETS: dict[str, tuple[tuple[Range, Range], ...]] = {
    'easy': (((0.4, 0.8), WHOLE),),
    'hard': (((0.2, 0.35), WHOLE), ((0.45, 0.8), (0.4, 0.7))),
    'junk': (((0.08, 0.15), WHOLE), ((0.3, 0.8), (0.05, 0.25))),
}
MIXTURE = ('easy', 'hard', 'easy', 'hard', 'easy', 'junk', 'easy', 'hard')
# Lowest (object scale, visible fraction) by grade, the best first.
GRADES = {'easy': (0.38, 0.85), 'hard': (0.18, 0.35), 'junk': (0.0, 0.0)}
OCCLUDER_SCALE = (0.3, 0.7)
MAX_OCCLUDERS = 20


class RetrievalSet(CompositeSet):
    """``retrieval/``: ``jpg/*.jpg``, ``gnd_composites.pkl`` and the same as ``.json``.

    One query per test cut-out, with its box. Database images of the same cut-out on other photos are ``easy`` if it
    is large and unoccluded, ``hard`` if it is small or partly hidden, else ``junk``. The other database images show
    train cut-outs on test photos.
    """

    name = 'retrieval'
    parts = {'others': 'retrieval_others'}
    setting_names = ('scene_size', 'retrieval_positives', 'retrieval_others', 'scene_style')

    def __init__(self, settings: CompositeSettings, assets: Assets) -> None:
        super().__init__(settings, assets)
        self.queries = self.splits['test'].cutouts
        related = len(self.queries) * (1 + settings.retrieval_positives)
        self.counts = {'related': related, **self.counts}

    def render(self, index: int, folder: Path) -> dict:
        part, number = self.locate(index)
        split = self.splits['test']
        if part == 'others':
            cutouts = self.splits['train'].cutouts
            cutout = cutouts[self.rng(index, 2).integers(len(cutouts))]
            return dict(self._render(index, cutout, split, MIXTURE[index % len(MIXTURE)], folder), query=None)
        query, number = divmod(number, 1 + self.settings.retrieval_positives)
        query_photo = int(self.rng(query, 1).integers(len(split.photos)))
        if number == 0:
            split = replace(split, photos=[split.photos[query_photo]])
            return self._render(index, self.queries[query], split, None, folder)
        photos = [photo for i, photo in enumerate(split.photos) if i != query_photo] or split.photos
        target = MIXTURE[(number - 1) % len(MIXTURE)]
        record = self._render(index, self.queries[query], replace(split, photos=photos), target, folder)
        return dict(record, query=query)

    def _render(self, index: int, cutout: Cutout, split: Split, target: str | None, folder: Path) -> dict:
        """Render one object; without a target, a query: large, unoccluded, without distractors."""
        rng = self.rng(index)
        targets = TARGETS[target or 'easy']
        scale, (least_visible, most_visible) = targets[rng.integers(len(targets))]
        style = replace(
            self.settings.scene_style,
            object_scale=scale,
            overhang=0.0,
            occluder_scale=OCCLUDER_SCALE,
            min_visible=least_visible,
        )
        canvas = Canvas(draw_background(split.photos, self.settings.scene_size, style, rng))
        if target is not None:
            paint_distractors(canvas, split, style, rng)
        paint_object(canvas, cutout, style, rng)
        x, y, width, height = find_box(canvas.mask(0))
        if target is not None:
            for _ in range(MAX_OCCLUDERS):
                if canvas.visible(0) <= most_visible:
                    break
                paint_occluder(canvas, 0, split, style, rng)
        name = f'{cutout.name.replace("/", "-")}-{index:05d}'
        write_image(folder / f'jpg/{name}.jpg', canvas.to_uint8())
        box = [float(v) for v in (x, y, x + width, y + height)]
        size = max(width, height) / min(canvas.size)
        return dict(name=name, is_query=target is None, box=box, scale=size, visible=canvas.visible(0))

    def finish(self, records: list[dict], folder: Path) -> dict[str, int]:
        queries = [record for record in records if record['is_query']]
        database = [record for record in records if not record['is_query']]
        truth = [dict(bbx=record['box'], easy=[], hard=[], junk=[]) for record in queries]
        for index, record in enumerate(database):
            if record['query'] is not None:
                truth[record['query']][grade(record)].append(index)
        ground_truth = dict(imlist=[r['name'] for r in database], qimlist=[r['name'] for r in queries], gnd=truth)
        write_json(folder / 'gnd_composites.json', ground_truth)
        (folder / 'gnd_composites.pkl').write_bytes(pickle.dumps(ground_truth, protocol=4))
        counts = {name: sum(len(entry[name]) for entry in truth) for name in GRADES}
        return dict(queries=len(queries), database=len(database), **counts)


def grade(record: dict) -> str:
    """Grade a database image by the scale and the visible fraction of its object."""
    return next(
        n for n, (scale, visible) in GRADES.items() if record['scale'] >= scale and record['visible'] >= visible
    )
