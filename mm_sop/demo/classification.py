"""Object-centered images: unlabeled for pretraining, labeled for k-NN and linear evaluation, background swaps."""

from pathlib import Path

import numpy as np

from mm_sop.demo.assets import Cutout
from mm_sop.demo.compose import Canvas, compose, draw_background, paint_object, to_uint8
from mm_sop.demo.sets import CompositeSet, balanced_cutout, write_image, write_json


class PretrainSet(CompositeSet):
    """``pretrain/``: unlabeled images in nested folders, train cut-outs on train photos."""

    name = 'pretrain'
    parts = {'train': 'pretrain'}
    setting_names = ('image_format', 'size', 'pretrain', 'object_style')
    per_folder = 1000

    def draw_cutout(self, rng: np.random.Generator) -> Cutout:
        """Draw the object of an image from the image's generator; no file records it."""
        cutouts = self.splits['train'].cutouts
        return cutouts[rng.integers(len(cutouts))]

    def render(self, index: int, folder: Path) -> dict:
        rng, split = self.rng(index), self.splits['train']
        cutout = self.draw_cutout(rng)
        canvas, _ = compose([cutout], split, self.settings.object_style, (self.settings.size,) * 2, rng)
        path = f'{index // self.per_folder:03d}/{index:06d}.{self.settings.image_format}'
        write_image(folder / path, canvas.to_uint8())
        return {}


class ClassesSet(CompositeSet):
    """``classes/{bank,seen,test}/<class>/<cut-out>_<n>``: labeled images, classes and identities balanced.

    ``bank`` shows train cut-outs on train photos, ``seen`` train cut-outs on test photos, ``test`` test cut-outs on
    test photos.
    """

    name = 'classes'
    setting_names = ('image_format', 'size', 'bank', 'seen', 'test', 'object_style')
    parts = {'bank': 'bank', 'seen': 'seen', 'test': 'test'}
    sides = {'bank': ('train', 'train'), 'seen': ('train', 'test'), 'test': ('test', 'test')}

    def render(self, index: int, folder: Path) -> dict:
        part, number = self.locate(index)
        objects, surroundings = (self.splits[side] for side in self.sides[part])
        cutout = balanced_cutout(objects, number)
        size = (self.settings.size,) * 2
        canvas, _ = compose([cutout], surroundings, self.settings.object_style, size, self.rng(index))
        path = f'{part}/{cutout.name}_{number:05d}.{self.settings.image_format}'
        write_image(folder / path, canvas.to_uint8())
        return {'path': path, 'label': cutout.label, 'identity': self.identities[cutout.name]}

    def finish(self, records: list[dict], folder: Path) -> dict[str, int]:
        for part, listed in self.by_part(records).items():
            write_file_list(folder / f'{part}.json', listed, self)
        return self.counts


def write_file_list(path: Path, records: list[dict], composite_set: CompositeSet) -> None:
    """Write a list of labeled images: path relative to the list, class index and identity (cut-out) index."""
    classes = composite_set.assets.classes
    files = [dict(path=r['path'], label=classes.index(r['label']), identity=r['identity']) for r in records]
    write_json(path, dict(classes=classes, identities=list(composite_set.identities), files=files))


class BackgroundsSet(CompositeSet):
    """``backgrounds/<variant>/val/<class>/``: the same objects on different backgrounds, as in ImageNet-9.

    Train cut-outs on test photos, without distractors and occluders. The five images of an object have the same
    name in every variant and show it at the same position: ``original``, ``mixed_same`` (background of another image
    of the same class), ``mixed_rand`` (background of an image of another class), ``only_fg`` (black background) and
    ``no_fg`` (black silhouette on the original background).
    """

    name = 'backgrounds'
    parts = {'val': 'backgrounds'}
    setting_names = ('image_format', 'size', 'backgrounds', 'object_style')
    variants = ('original', 'mixed_same', 'mixed_rand', 'only_fg', 'no_fg')

    def render(self, index: int, folder: Path) -> dict:
        settings, cutout = self.settings, balanced_cutout(self.splits['train'], index)
        # The items cycle over the classes.
        rng, classes = self.rng(index, 2), len(self.assets.classes)
        same = [i for i in range(index % classes, len(self), classes) if i != index] or [index]
        other = [i for i in range(len(self)) if i % classes != index % classes] or [index]
        partners = {'mixed_same': int(rng.choice(same)), 'mixed_rand': int(rng.choice(other))}
        backgrounds = {name: self._background(i) for name, i in {'original': index, **partners}.items()}
        backgrounds['only_fg'] = np.zeros_like(backgrounds['original'])
        images = {}
        # The same random numbers put the object at the same place of each.
        for name, background in backgrounds.items():
            canvas = Canvas(background.copy())
            paint_object(canvas, cutout, settings.object_style, self.rng(index, 1))
            images[name] = canvas.to_uint8()
        images['no_fg'] = np.where(canvas.mask(0)[..., None], 0, to_uint8(backgrounds['original']))
        path = f'val/{cutout.name}_{index:05d}.{settings.image_format}'
        for name, image in images.items():
            write_image(folder / name / path, image)
        return {'path': path, 'label': cutout.label, 'identity': self.identities[cutout.name], 'background': partners}

    def _background(self, index: int) -> np.ndarray:
        size, style = (self.settings.size,) * 2, self.settings.object_style
        return draw_background(self.splits['test'].photos, size, style, self.rng(index, 0))

    def finish(self, records: list[dict], folder: Path) -> dict[str, int]:
        for variant in self.variants:
            listed = [dict(record, path=f'{variant}/{record["path"]}') for record in records]
            write_file_list(folder / f'{variant}.json', listed, self)
        write_json(folder / 'background_of.json', {record['path']: record['background'] for record in records})
        return {'objects': len(records), 'images': len(records) * len(self.variants)}
