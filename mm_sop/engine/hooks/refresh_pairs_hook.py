"""Mines semantic pairs again with the network that is being trained."""

from pathlib import Path

import torch
from mmengine.dist import barrier, get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import Tensor
from torch.utils.data import Subset

from mm_sop.datasets.semantic_pairs import SemanticPairDataset, describe_data, refreshed_manifest
from mm_sop.engine.hooks.base import evaluating
from mm_sop.evaluation.features.extraction import extract_features, gather_features, network_encoder
from mm_sop.evaluation.retrieval.mining import (
    PlainImages,
    Selection,
    choose_images,
    make_manifest,
    mine,
    write_manifest,
)
from mm_sop.utils.modules import unwrap_model


@HOOKS.register_module()
class RefreshPairsHook(Hook):
    """Replaces the pairs of a :class:`SemanticPairDataset` by pairs that the current network finds (optional in SePP).

    Images are encoded without augmentation, and the new pairs are used from the epoch that begins then. They are saved
    in ``pairs`` in the work directory, so that a resumed run uses the same. For the modes ``'replace'`` and
    ``'joint'``.

    Args:
        every (int): Epochs between two searches, at least 1. Defaults to 10.
        begin (int): Zero-based first epoch with a search. Defaults to 10, because features of an untrained network are
            not informative.
        network (str): ``'teacher'`` or ``'student'``, if the model has both. Defaults to ``'teacher'``.
        num_images (int, optional): Number of images that are compared, chosen at random. Defaults to None: all of up to
            200,000 images, or a tenth of more.
        seed (int): Seed of the choice. Defaults to 0.
        batch_size (int): Images that are encoded at once. Defaults to 256.
        num_workers (int): Worker processes that load images. Defaults to 0.
        **selection: Fields of :class:`mm_sop.evaluation.retrieval.mining.Selection`, such as ``lower`` and ``upper``.
    """

    def __init__(
        self,
        every: int = 10,
        begin: int = 10,
        network: str = 'teacher',
        num_images: int | None = None,
        seed: int = 0,
        batch_size: int = 256,
        num_workers: int = 0,
        **selection,
    ) -> None:
        if every < 1 or begin < 0:
            raise ValueError(f'expected every >= 1 and begin >= 0, got {every} and {begin}')
        self.every = every
        self.begin = begin
        self.network = network
        self.num_images = num_images
        self.seed = seed
        self.loading = dict(batch_size=batch_size, num_workers=num_workers)
        self.selection = Selection(**selection)

    def before_train(self, runner: Runner) -> None:
        """Point the dataset to the pairs of this run, and remove those of epochs that will be repeated."""
        self.folder = Path(runner.work_dir, 'pairs')
        if is_main_process():
            # The search precedes its epoch: it has been made for an epoch that is resumed in the middle.
            next_epoch = runner.epoch + bool(self._seen_of_epoch(runner))
            for path in self.folder.glob('epoch_*.json'):
                if int(path.stem.removeprefix('epoch_')) >= next_epoch:
                    path.unlink()
        barrier()
        dataset = runner.train_dataloader.dataset
        while not isinstance(dataset, SemanticPairDataset):
            if not hasattr(dataset, 'dataset'):
                raise ValueError('RefreshPairsHook needs a SemanticPairDataset: see docs/methods/sepp.md')
            dataset = dataset.dataset
        dataset.follow(self.folder)

    def before_train_epoch(self, runner: Runner) -> None:
        """Search for pairs if it is time to, except in an epoch that is resumed in the middle."""
        epoch = runner.epoch
        if epoch < self.begin or (epoch - self.begin) % self.every or self._seen_of_epoch(runner):
            return
        images = PlainImages(runner.cfg)
        chosen = choose_images(len(images), self.num_images, self.seed)
        features = self._encode(unwrap_model(runner.model), Subset(images, chosen.tolist()))
        if is_main_process():
            mined = mine(features, self.selection, seed=self.seed)
            source = dict(source='the run itself', epoch=epoch, network=self.network)
            definition = dict(data=describe_data(images.dataset), seed=self.seed, encoder=source)
            manifest = make_manifest(mined, self.selection, chosen, definition)
            write_manifest(manifest, refreshed_manifest(self.folder, epoch))
            band = f'{mined.lower:.4f} ... {self.selection.upper}'
            runner.logger.info(f'Found {len(mined.pairs)} semantic pairs among {len(chosen)} images, cosine {band}')
        barrier()

    def _encode(self, model: torch.nn.Module, images: Subset) -> Tensor:
        rank, world_size = get_dist_info()
        encode = network_encoder(model, self.network)

        def encode_readable(batch: dict) -> dict[str, Tensor]:
            """Features of unreadable images are zero, so that they are part of no pair."""
            readable = torch.tensor([not sample.get('unreadable') for sample in batch['data_samples']])
            return {name: value * readable.to(value)[:, None] for name, value in encode(batch).items()}

        with evaluating(model), torch.no_grad():
            found = extract_features(encode_readable, images, **self.loading, rank=rank, world_size=world_size)
        return gather_features(found['global'], len(images)).cpu()

    @staticmethod
    def _seen_of_epoch(runner: Runner) -> int:
        return runner.iter % len(runner.train_dataloader)
