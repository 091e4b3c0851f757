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
    parts = {'train': 'scenes_train', 'val': 'scenes_val'}
    sides = {'train': 'train', 'val': 'test'}
    setting_names = ('scene_size', 'scenes_train', 'scenes_val', 'scene_style')

    def compose_scene(self, index: int) -> tuple[Canvas, list[Cutout]]:
        """Compose scene ``index`` and return it with its objects; identical in every set made of scenes."""
        part, _ = self.locate(index)
        split, style, rng = self.splits[self.sides[part]], self.settings.scene_style, self.rng(index)
        return compose(balanced_choice(split, *style.objects, rng), split, style, self.settings.scene_size, rng)

    def render(self, index: int, folder: Path) -> dict:
        canvas, placed = self.compose_scene(index)
        part, _ = self.locate(index)
        name, objects = f'{index:06d}.jpg', []
        write_image(folder / part / name, canvas.to_uint8())
        for number, cutout in enumerate(placed):
            code = coco_mask.encode(np.asfortranarray(canvas.mask(number), np.uint8))
            annotation = dict(
                category_id=self.assets.classes.index(cutout.label) + 1,
                segmentation=dict(size=list(canvas.labels.shape), counts=code['counts'].decode()),
                bbox=coco_mask.toBbox(code).tolist(),
                area=int(coco_mask.area(code)),
                iscrowd=0,
                identity=self.identities[cutout.name],
            )
            objects.append(annotation)
        return {'id': index, 'file_name': name, 'objects': objects}

    def finish(self, records: list[dict], folder: Path) -> dict[str, int]:
        counts, (width, height) = {}, self.settings.scene_size
        categories = [dict(id=i, name=name, supercategory='') for i, name in enumerate(self.assets.classes, 1)]
        for part, listed in self.by_part(records).items():
            images = [dict(id=r['id'], file_name=r['file_name'], width=width, height=height) for r in listed]
            objects = [dict(image_id=record['id'], **entry) for record in listed for entry in record['objects']]
            annotations = [dict(id=number, **entry) for number, entry in enumerate(objects, 1)]
            coco = dict(info={}, licenses=[], images=images, annotations=annotations, categories=categories)
            write_json(folder / f'annotations/instances_{part}.json', coco)
            counts.update({part: len(images), f'{part}_objects': len(objects)})
        return counts


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
        part, _ = self.locate(index)
        name = f'{self.folders[part]}/{index:06d}'
        write_image(folder / f'images/{name}.jpg', canvas.to_uint8())
        target = folder / f'annotations/{name}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(cv2.imencode('.png', values[canvas.labels])[1].tobytes())
        return {}

    def finish(self, records: list[dict], folder: Path) -> dict[str, int]:
        write_json(folder / 'classes.json', ['background', *self.assets.classes])
        return {self.folders[part]: count for part, count in self.counts.items()}
