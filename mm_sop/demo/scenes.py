"""Scenes of several objects: instances in COCO JSON, semantic masks in the ADE20K layout."""

from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mm_sop.demo.assets import Cutout
from mm_sop.demo.compose import Canvas, compose
from mm_sop.demo.sets import CompositeSet, balanced_choice, write_image, write_json


class ScenesSet(CompositeSet):
    """``scenes/``: ``{train,val}/*.jpg`` and ``annotations/instances_{train,val}.json``.

    Training scenes show train cut-outs on train photos, validation scenes test cut-outs on test photos. Masks are the
    visible pixels in run-length encoding; boxes and areas follow from them.
    """

    name = 'scenes'
    stream = 'scenes'
    setting_names = ('scene_size', 'scenes_train', 'scenes_val', 'scene_style')
    sides = {'train': 'train', 'val': 'test'}

    def __len__(self) -> int:
        return self.settings.scenes_train + self.settings.scenes_val

    def part_of(self, index: int) -> str:
        return 'train' if index < self.settings.scenes_train else 'val'

    def compose_scene(self, index: int) -> tuple[Canvas, list[Cutout]]:
        """Compose scene ``index`` and return it with its objects; identical in every set made of scenes."""
        split, style, rng = self.splits[self.sides[self.part_of(index)]], self.settings.scene_style, self.rng(index)
        cutouts = balanced_choice(split, rng.integers(style.objects[0], style.objects[1] + 1), rng)
        return compose(cutouts, split, style, self.settings.scene_size, rng)

    def render(self, index: int, folder: Path) -> dict:
        canvas, placed = self.compose_scene(index)
        part, name = self.part_of(index), f'{index:06d}.jpg'
        write_image(folder / part / name, canvas.to_uint8())
        objects = [self._annotate(cutout, canvas.mask(i)) for i, cutout in enumerate(placed)]
        return {'part': part, 'id': index, 'file_name': name, 'objects': objects}

    def _annotate(self, cutout: Cutout, visible: np.ndarray) -> dict:
        code = coco_mask.encode(np.asfortranarray(visible, np.uint8))
        return dict(
            category_id=self.assets.classes.index(cutout.label) + 1,
            segmentation=dict(size=list(visible.shape), counts=code['counts'].decode()),
            bbox=coco_mask.toBbox(code).tolist(),
            area=int(coco_mask.area(code)),
            iscrowd=0,
            identity=self.identities[cutout.name],
        )

    def finish(self, records: list[dict], folder: Path) -> dict[str, int]:
        counts = {}
        for part in self.sides:
            listed = [record for record in records if record['part'] == part]
            annotations = self._coco(listed)
            write_json(folder / f'annotations/instances_{part}.json', annotations)
            counts.update({part: len(listed), f'{part}_objects': len(annotations['annotations'])})
        return counts

    def _coco(self, records: list[dict]) -> dict:
        width, height = self.settings.scene_size
        images = [dict(id=r['id'], file_name=r['file_name'], width=width, height=height) for r in records]
        objects = [dict(image_id=record['id'], **entry) for record in records for entry in record['objects']]
        categories = [dict(id=i, name=name, supercategory='') for i, name in enumerate(self.assets.classes, 1)]
        annotations = [dict(id=number, **entry) for number, entry in enumerate(objects, 1)]
        return dict(info={}, licenses=[], images=images, annotations=annotations, categories=categories)


class SegmentationSet(ScenesSet):
    """``segmentation/``: the same scenes as ``images/*/*.jpg`` with ``annotations/*/*.png`` index maps.

    0 is the background including unlabeled objects (ADE20K's "other", ``reduce_zero_label``); class k of
    ``classes.json`` without its first entry has the value k + 1.
    """

    name = 'segmentation'
    folders = {'train': 'training', 'val': 'validation'}

    def render(self, index: int, folder: Path) -> dict:
        canvas, placed = self.compose_scene(index)
        values = np.array([0, *(self.assets.classes.index(cutout.label) + 1 for cutout in placed)], np.uint8)
        part = self.folders[self.part_of(index)]
        write_image(folder / f'images/{part}/{index:06d}.jpg', canvas.to_uint8())
        target = folder / f'annotations/{part}/{index:06d}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(cv2.imencode('.png', values[canvas.labels])[1].tobytes())
        return {'part': part}

    def finish(self, records: list[dict], folder: Path) -> dict[str, int]:
        write_json(folder / 'classes.json', ['background', *self.assets.classes])
        return {part: sum(record['part'] == part for record in records) for part in self.folders.values()}
