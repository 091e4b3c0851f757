"""Object-centered images: unlabeled for pretraining, labeled for k-NN and linear evaluation, background swaps."""

from pathlib import Path

import numpy as np

from mm_sop.demo.assets import Cutout
from mm_sop.demo.compose import Canvas, compose, draw_background, paint_object
from mm_sop.demo.sets import CompositeSet, balanced_cutout, write_image, write_json


class PretrainSet(CompositeSet):
    """``pretrain/``: unlabeled images in nested folders, train cut-outs on train photos."""

    name = 'pretrain'
    setting_names = ('image_format', 'size', 'pretrain', 'object_style')
    per_folder = 1000

    def __len__(self) -> int:
        return self.settings.pretrain

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
    parts = {'bank': ('train', 'train'), 'seen': ('train', 'test'), 'test': ('test', 'test')}

    def __len__(self) -> int:
        return sum(getattr(self.settings, part) for part in self.parts)

    def _locate(self, index: int) -> tuple[str, int]:
        for part in self.parts:
            count = getattr(self.settings, part)
            if index < count:
                return part, index
            index -= count
        raise IndexError(index)

    def render(self, index: int, folder: Path) -> dict:
        part, number = self._locate(index)
        objects, surroundings = (self.splits[side] for side in self.parts[part])
        cutout = balanced_cutout(objects, number)
        size = (self.settings.size,) * 2
        canvas, _ = compose([cutout], surroundings, self.settings.object_style, size, self.rng(index))
        path = f'{part}/{cutout.name}_{number:05d}.{self.settings.image_format}'
        write_image(folder / path, canvas.to_uint8())
        return {'part': part, 'path': path, 'label': cutout.label, 'identity': self.identities[cutout.name]}

    def finish(self, records: list[dict], folder: Path) -> dict[str, int]:
        for part in self.parts:
            write_file_list(folder / f'{part}.json', [r for r in records if r['part'] == part], self)
        return {part: getattr(self.settings, part) for part in self.parts}


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
    setting_names = ('image_format', 'size', 'backgrounds', 'object_style')
    variants = ('original', 'mixed_same', 'mixed_rand', 'only_fg', 'no_fg')

    def __len__(self) -> int:
        return self.settings.backgrounds

    def render(self, index: int, folder: Path) -> dict:
        cutout = balanced_cutout(self.splits['train'], index)
        background = self._background(index)
        same, other = self._partners(index)
        black = np.zeros_like(background)
        painted = {
            'original': self._paint(cutout, background, index),
            'mixed_same': self._paint(cutout, self._background(same), index),
            'mixed_rand': self._paint(cutout, self._background(other), index),
            'only_fg': self._paint(cutout, black, index),
        }
        silhouette = painted['original'].mask(0)
        images = {name: canvas.to_uint8() for name, canvas in painted.items()}
        images['no_fg'] = np.where(silhouette[..., None], 0, Canvas(background).to_uint8())
        path = f'val/{cutout.name}_{index:05d}.{self.settings.image_format}'
        for name, image in images.items():
            write_image(folder / name / path, image)
        partners = {'mixed_same': same, 'mixed_rand': other}
        return {'path': path, 'label': cutout.label, 'identity': self.identities[cutout.name], 'background': partners}

    def _background(self, index: int) -> np.ndarray:
        settings = self.settings
        return draw_background(
            self.splits['test'].photos, (settings.size,) * 2, settings.object_style, self.rng(index, 0)
        )

    def _paint(self, cutout: Cutout, background: np.ndarray, index: int) -> Canvas:
        canvas = Canvas(background.copy())
        paint_object(canvas, cutout, self.settings.object_style, self.rng(index, 1))
        return canvas

    def _partners(self, index: int) -> tuple[int, int]:
        """Draw another item of the same class and one of another class; the items cycle over the classes."""
        rng, classes = self.rng(index, 2), len(self.assets.classes)
        same = [i for i in range(index % classes, len(self), classes) if i != index] or [index]
        other = [i for i in range(len(self)) if i % classes != index % classes] or [index]
        return int(rng.choice(same)), int(rng.choice(other))

    def finish(self, records: list[dict], folder: Path) -> dict[str, int]:
        for variant in self.variants:
            listed = [dict(record, path=f'{variant}/{record["path"]}') for record in records]
            write_file_list(folder / f'{variant}.json', listed, self)
        sources = {record['path']: record['background'] for record in records}
        write_json(folder / 'background_of.json', sources)
        return {'objects': len(records), 'images': len(records) * len(self.variants)}
