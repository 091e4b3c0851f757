"""Finds semantic pairs anew with the network that is being trained."""

from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.dist import barrier, get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import Tensor
from torch.utils.data import Subset

from mm_sop.datasets.randomness import isolated_random_state
from mm_sop.datasets.semantic_pairs import SemanticPairDataset, describe_data, refreshed_manifest
from mm_sop.engine.utils import share_buffers, unwrap_model
from mm_sop.evaluation.features import evaluation_mode, extract_features, gather_features, network_encoder
from mm_sop.evaluation.mining import PlainPictures, Selection, choose_images, make_manifest, mine, write_manifest


@HOOKS.register_module()
class RefreshPairsHook(Hook):
    """Replaces the pairs of a :class:`SemanticPairDataset` by those that the present network finds (SePP, an option).

    Pictures are encoded without augmentation, and the pairs are used from the epoch on that begins then. They lie in
    ``pairs`` in the work directory, so that a resumed run uses the same. In the modes ``'replace'`` and ``'joint'``.

    Args:
        every (int): Epochs between two searches. Defaults to 10.
        begin (int): First epoch with a search, from 0. Defaults to 10: an untrained network finds nothing of worth.
        network (str): ``'teacher'`` or ``'student'`` where there are both. Defaults to ``'teacher'``.
        num_images (int, optional): Pictures that are compared. Defaults to None: all of up to 200,000, else a tenth.
        seed (int): Seed of their choice. Defaults to 0.
        batch_size (int): Pictures encoded at once. Defaults to 256.
        num_workers (int): Worker processes that load pictures. Defaults to 0.
        **selection: Fields of :class:`mm_sop.evaluation.mining.Selection`, such as ``lower`` and ``upper``.

    Raises:
        ValueError: ``every`` or ``begin`` is out of range.
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
        """Let the data set look for new pairs; forget those of epochs that are still to come."""
        self.folder = Path(runner.work_dir, 'pairs')
        if is_main_process():
            kept = runner.epoch + bool(self._seen_of_epoch(runner))
            for path in self.folder.glob('epoch_*.json'):
                if int(path.stem.removeprefix('epoch_')) >= kept:
                    path.unlink()
        barrier()
        _find_dataset(runner).follow(self.folder)

    def before_train_epoch(self, runner: Runner) -> None:
        """Search, unless the epoch goes on after an interruption."""
        epoch = runner.epoch
        if epoch < self.begin or (epoch - self.begin) % self.every or self._seen_of_epoch(runner):
            return
        pictures = PlainPictures(runner.cfg)
        images = choose_images(len(pictures), self.num_images, self.seed)
        features = self._encode(unwrap_model(runner.model), Subset(pictures, images.tolist()))
        if is_main_process():
            mined = mine(features, self.selection, seed=self.seed)
            source = dict(source='the run itself', epoch=epoch, network=self.network)
            definition = dict(data=describe_data(pictures.dataset), seed=self.seed, encoder=source)
            manifest = make_manifest(mined, self.selection, images, definition)
            write_manifest(manifest, refreshed_manifest(self.folder, epoch))
            band = f'{mined.lower:.4f} ... {self.selection.upper}'
            runner.logger.info(f'Found {len(mined.pairs)} semantic pairs among {len(images)} pictures, cosine {band}')
        barrier()

    def _encode(self, model: torch.nn.Module, pictures: Subset) -> Tensor:
        rank, world_size = get_dist_info()
        share_buffers(model)
        encode = _without_unreadable(network_encoder(model, self.network))
        with isolated_random_state(cuda=True), evaluation_mode(model), torch.no_grad():
            share = extract_features(encode, pictures, **self.loading, rank=rank, world_size=world_size)['global']
        return gather_features(share, len(pictures)).cpu()

    @staticmethod
    def _seen_of_epoch(runner: Runner) -> int:
        return runner.iter % len(runner.train_dataloader)


def _without_unreadable(encode: Callable) -> Callable:
    """Features of zeros, which are in no pair, for pictures that cannot be read."""

    def masked(batch: dict) -> dict[str, Tensor]:
        readable = torch.tensor([not sample.get('unreadable') for sample in batch['data_samples']])
        return {name: value * readable.to(value)[:, None] for name, value in encode(batch).items()}

    return masked


def _find_dataset(runner: Runner) -> SemanticPairDataset:
    dataset = runner.train_dataloader.dataset
    while not isinstance(dataset, SemanticPairDataset):
        if not hasattr(dataset, 'dataset'):
            raise ValueError('RefreshPairsHook needs a SemanticPairDataset: see docs/methods/sepp.md')
        dataset = dataset.dataset
    return dataset
