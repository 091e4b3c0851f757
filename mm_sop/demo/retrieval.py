"""Instance retrieval in the layout of the revisited Oxford and Paris datasets."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np

from mm_sop.demo.assets import Cutout, Split
from mm_sop.demo.compose import Canvas, Range, Style, draw_background, paint_distractors, paint_object, paint_occluder
from mm_sop.demo.sets import CompositeSet, write_image, write_json

WHOLE = (0.95, 1.0)
# Targeted (object scale, visible fraction); the grade follows from the rendered image.
TARGETS: dict[str, tuple[tuple[Range, Range], ...]] = {
    'easy': (((0.4, 0.8), WHOLE),),
    'hard': (((0.2, 0.35), WHOLE), ((0.45, 0.8), (0.4, 0.7))),
    'junk': (((0.08, 0.15), WHOLE), ((0.3, 0.8), (0.05, 0.25))),
}
MIXTURE = ('easy', 'hard', 'easy', 'hard', 'easy', 'junk', 'easy', 'hard')
GRADES = ('easy', 'hard', 'junk')
EASY_LIMITS = (0.38, 0.85)
HARD_LIMITS = (0.18, 0.35)
OCCLUDER_SCALE = (0.3, 0.7)
MAX_OCCLUDERS = 20


class RetrievalSet(CompositeSet):
    """``retrieval/``: ``jpg/*.jpg``, ``gnd_composites.pkl`` and the same as ``.json``.

    One query per test cut-out, with its box. Database images of the same cut-out on other photos are ``easy`` if it
    is large and unoccluded, ``hard`` if it is small or partly hidden, else ``junk``. The other database images show
    train cut-outs on test photos.
    """

    name = 'retrieval'
    setting_names = ('scene_size', 'retrieval_positives', 'retrieval_others', 'scene_style')

    @property
    def queries(self) -> list[Cutout]:
        return self.splits['test'].cutouts

    def __len__(self) -> int:
        return len(self.queries) * (1 + self.settings.retrieval_positives) + self.settings.retrieval_others

    def render(self, index: int, folder: Path) -> dict:
        per_query = 1 + self.settings.retrieval_positives
        query, number = divmod(index, per_query)
        if query >= len(self.queries):
            return self._render_other(index, folder)
        split, cutout = self.splits['test'], self.queries[query]
        query_photo = int(self.rng(query, 1).integers(len(split.photos)))
        if number == 0:
            return self._render(index, cutout, replace(split, photos=[split.photos[query_photo]]), None, folder)
        photos = [photo for i, photo in enumerate(split.photos) if i != query_photo] or split.photos
        target = MIXTURE[(number - 1) % len(MIXTURE)]
        return dict(self._render(index, cutout, replace(split, photos=photos), target, folder), query=query)

    def _render_other(self, index: int, folder: Path) -> dict:
        cutouts = self.splits['train'].cutouts
        cutout = cutouts[self.rng(index, 2).integers(len(cutouts))]
        target = MIXTURE[index % len(MIXTURE)]
        return dict(self._render(index, cutout, self.splits['test'], target, folder), query=None)

    def _render(self, index: int, cutout: Cutout, split: Split, target: str | None, folder: Path) -> dict:
        """Render one object; without a target, a query: large, unoccluded, without distractors."""
        rng = self.rng(index)
        targets = TARGETS[target or 'easy']
        scale, visible = targets[rng.integers(len(targets))]
        style = replace(
            self.settings.scene_style,
            object_scale=scale,
            overhang=0.0,
            occluder_scale=OCCLUDER_SCALE,
            min_visible=visible[0],
        )
        canvas = Canvas(draw_background(split.photos, self.settings.scene_size, style, rng))
        if target is not None:
            paint_distractors(canvas, split, style, rng)
        paint_object(canvas, cutout, style, rng)
        whole = find_box(canvas.mask(0))
        if target is not None:
            occlude(canvas, split, style, visible[1], rng)
        name = f'{cutout.name.replace("/", "-")}-{index:05d}'
        write_image(folder / f'jpg/{name}.jpg', canvas.to_uint8())
        side = max(whole[2] - whole[0], whole[3] - whole[1]) / min(canvas.size)
        return dict(name=name, is_query=target is None, box=whole, scale=side, visible=canvas.visible(0))

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


def find_box(mask: np.ndarray) -> list[float]:
    """Return the box (x1, y1, x2, y2) of a non-empty (H, W) mask; x2 and y2 are exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


def grade(record: dict) -> str:
    """Grade a database image by the scale and the visible fraction of its object."""
    for name, (scale, visible) in (('easy', EASY_LIMITS), ('hard', HARD_LIMITS)):
        if record['scale'] >= scale and record['visible'] >= visible:
            return name
    return 'junk'


def occlude(canvas: Canvas, split: Split, style: Style, most_visible: float, rng: np.random.Generator) -> None:
    """Hide the first object behind clutter down to a visible fraction, never below ``style.min_visible``."""
    for _ in range(MAX_OCCLUDERS):
        if canvas.visible(0) <= most_visible:
            return
        paint_occluder(canvas, 0, split, style, rng)
