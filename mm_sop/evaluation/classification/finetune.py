"""Fine-tuning of the whole network with MMPretrain's classifier and MMEngine's Runner."""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.device import is_cuda_available
from mmengine.dist import get_dist_info, get_world_size
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier
from torch import Tensor, nn

from mm_sop.datasets.seeded import SeededDataset
from mm_sop.encoders.encoder import Encoder
from mm_sop.evaluation.classification.common import (
    FewLabelsProtocol,
    chart_points,
    confusion,
    describe_subsets,
    label_subsets,
    score_accuracy,
)
from mm_sop.evaluation.context import PROTOCOLS, EvaluationContext, ProtocolResult, Score
from mm_sop.evaluation.features.extraction import evaluation_mode, extract_features, gather_features
from mm_sop.evaluation.features.identity import content_key, describe_source
from mm_sop.evaluation.labeled_data import class_labels, class_names, random_views, test_sets
from mm_sop.models.selfsup.teacher_student import remove_mask_token
from mm_sop.utils.modules import share_buffers, unwrap_model


@dataclass
class FinetuneSettings:
    """Recipe of a fine-tuning.

    Attributes:
        epochs: Passes over the images.
        min_iterations: Smallest number of steps; with few images the epochs are more.
        batch_size: Images in a batch over all processes, at most those there are.
        learning_rate: Peak learning rate of AdamW for a batch of 256, after the warm-up; cosine decay to 0.
        layer_decay: Factor of the learning rate from each layer to the one before; 1 for equal rates.
        weight_decay: Weight decay of all parameters but biases and norms.
        warmup: Fraction of the steps in which the learning rate rises.
        mixup: Parameter alpha of mixup; 0 for none.
        cutmix: Parameter alpha of CutMix; 0 for none.
        label_smoothing: Fraction of the target that is spread over all classes.
    """

    epochs: int = 10
    min_iterations: int = 200
    batch_size: int = 64
    learning_rate: float = 4e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    warmup: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    label_smoothing: float = 0.1


@PROTOCOLS.register_module('finetune')
@dataclass
class FinetuneProtocol(FinetuneSettings, FewLabelsProtocol):
    """Accuracy after training all layers with labels: all of them, or few (semi-supervised).

    MMPretrain's ``ImageClassifier`` is trained by a Runner with AdamW, layer-wise learning rates, mixup and CutMix. The
    defaults suit small datasets; the recipes of the papers on ImageNet are in ``configs/finetune``. An interrupted
    training is resumed.

    Args:
        fractions: Fractions of the labels: 1 for all; for 0.01 and 0.1 SimCLR's file lists are used if they are beside
            the data.
    """

    version = 2
    readouts = ('global',)

    fractions: Sequence[float] = (1, 0.1, 0.01)

    def run(self, context: EvaluationContext, data: dict[str, BaseDataset]) -> ProtocolResult:
        if len(class_names(data['train'])) < 2:
            raise ValueError(f'fine-tuning needs at least two classes, {context.data} has one')
        few = label_subsets(context, data['train'], [each for each in self.fractions if each < 1], (), tries=1)
        subsets = dict({'100%': [np.arange(len(data['train']))]} if 1 in self.fractions else {}, **few)
        scores: dict[tuple[str, str], Score] = {}
        confusions = {}
        for subset, (rows,) in subsets.items():
            print_log(f'Fine-tuning with {subset} of the labels, {len(rows)} images ...', 'current')
            classifier = self._train(context, data['train'], rows, subset)
            for name, dataset in test_sets(data).items():
                predicted, labels = _predict(context, classifier, dataset), class_labels(dataset).numpy()
                scores[name, subset] = score_accuracy(predicted == labels, dataset, data['train'])
                if subset == '100%':
                    confusions[name] = confusion(predicted, labels, dataset, f'Fine-tuned, {name}')
        named = {f'{name}_class_{subset}'.removesuffix('_100%'): each for (name, subset), each in scores.items()}
        rising = dict(sorted(scores.items(), key=lambda item: float(item[0][1].rstrip('%'))))
        card = dict(subsets=describe_subsets(context, few))
        return ProtocolResult(named, card, dict(confusion=confusions, lines=chart_points(rising)))

    def _train(self, context: EvaluationContext, train: BaseDataset, rows: np.ndarray, subset: str) -> nn.Module:
        dim, num_classes = context.features(train).shape[1], len(class_names(train))
        torch.manual_seed(context.seed)
        classifier = build_classifier(context.encoder, dim, num_classes, self)
        data, transform = describe_source(train), asdict(context.transform)
        definition = dict(options=vars(self), encoder=context.encoder.identity, seed=context.seed, labels=subset)
        definition.update(data=data, rows=rows.tolist(), transform=transform, version=self.version)
        work_dir = context.work_dir / 'finetune' / f'finetune_{content_key(definition)}'
        views = random_views(train.get_subset(rows.tolist()), context.transform)
        return finetune(classifier, views, self, work_dir, context.seed, context.num_workers)


def _predict(context: EvaluationContext, classifier: ImageClassifier, dataset: BaseDataset) -> np.ndarray:
    def encode(batch: dict) -> dict[str, Tensor]:
        return dict(logits=classifier(classifier.data_preprocessor(batch, False)['inputs'], mode='tensor').float())

    with evaluation_mode(classifier):
        features = extract_features(encode, dataset, context.batch_size, context.num_workers, *get_dist_info())
    return gather_features(features['logits'], len(dataset)).argmax(1).cpu().numpy()


def build_classifier(encoder: Encoder, dim: int, num_classes: int, settings: FinetuneSettings) -> ImageClassifier:
    """Build a classifier: a copy of a network whose global representation has width ``dim``, and a new linear head."""
    network = copy.deepcopy(encoder.network)
    for module in network.modules():
        if hasattr(module, 'frozen_stages'):
            # Otherwise `train` would freeze again what pretraining had frozen.
            module.frozen_stages = -1  # type: ignore[assignment]  # Module has no types of attributes
    network.requires_grad_(True)
    remove_mask_token(network)
    if isinstance(network, BaseModule):
        # Otherwise the runner would initialize the weights again.
        network.is_init = True
    loss = dict(type='LabelSmoothLoss', label_smooth_val=settings.label_smoothing, mode='original')
    init_cfg = dict(type='TruncNormal', layer='Linear', std=0.01)
    alphas = dict(Mixup=settings.mixup, CutMix=settings.cutmix)
    augments = [dict(type=name, alpha=alpha) for name, alpha in alphas.items() if alpha]
    to_rgb = encoder.data_preprocessor._channel_conversion
    return ImageClassifier(
        backbone=network,
        neck=dict(type='GlobalNeck'),
        head=dict(type='LinearClsHead', num_classes=num_classes, in_channels=dim, loss=loss, init_cfg=init_cfg),
        train_cfg=dict(augments=augments) if augments else None,
        data_preprocessor=dict(num_classes=num_classes, to_rgb=to_rgb, **encoder.identity['normalization']),
    )


def finetune(
    classifier: ImageClassifier,
    dataset: BaseDataset,
    settings: FinetuneSettings,
    work_dir: Path,
    seed: int = 0,
    num_workers: int = 0,
) -> nn.Module:
    """Train a classifier on labeled images in random views; an interrupted training in the same folder is resumed.

    The name of ``work_dir`` is that of the run; ``seed`` decides order, views and mixing.

    Raises:
        ValueError: There are fewer images than processes.
    """
    world_size, total_batch = get_world_size(), min(settings.batch_size, len(dataset))
    if total_batch < world_size:
        raise ValueError(
            f'batches of {total_batch} images cannot be shared by {world_size} processes: start fewer processes, or '
            'give more images or a larger batch_size'
        )
    batch_size = total_batch // world_size
    steps = len(dataset) // (batch_size * world_size)
    epochs = max(settings.epochs, math.ceil(settings.min_iterations / steps))
    loading = dict(batch_size=batch_size, num_workers=num_workers, persistent_workers=num_workers > 0, drop_last=True)
    wrapper: dict = dict(type='MMDistributedDataParallel', broadcast_buffers=False)
    if not is_cuda_available():
        wrapper['device_ids'] = None  # otherwise MMEngine names a CUDA device
    runner = Runner(
        model=classifier,
        work_dir=str(work_dir),
        train_dataloader=dict(
            **loading,
            dataset=SeededDataset(dataset, seed),
            sampler=dict(type='ResumableSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
            worker_init_fn=dict(type='pretrain_worker_init'),
        ),
        train_cfg=dict(type='PretrainLoop', max_epochs=epochs),
        **_optimization(settings, settings.learning_rate * batch_size * world_size / 256, epochs * steps),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=max(1, epochs * steps // 10), log_metric_by_epoch=False),
            checkpoint=dict(type='PretrainCheckpointHook', epochs=max(1, epochs // 5), max_keep_ckpts=1),
        ),
        resume=True,
        launcher='pytorch' if world_size > 1 else 'none',
        randomness=dict(seed=seed),
        default_scope='mmpretrain',
        experiment_name=work_dir.name,
        cfg=dict(model_wrapper_cfg=wrapper),
    )
    model = unwrap_model(runner.train())
    share_buffers(model)
    return model


def _optimization(settings: FinetuneSettings, learning_rate: float, total: int) -> dict:
    """Optimizer and schedule over so many steps, as arguments of the runner."""
    wrapper: dict = dict(optimizer=dict(type='AdamW', lr=learning_rate, weight_decay=settings.weight_decay))
    rules = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
    if settings.layer_decay != 1:
        rules.update(flat_decay_mult=0.0, layer_decay_rate=settings.layer_decay)
        wrapper['constructor'] = 'LayerDecayOptimWrapperConstructor'
    warmup = round(settings.warmup * total)
    # MMEngine's LinearLR over a single step would never leave its start factor.
    warmup = warmup if warmup > 1 else 0
    rising = dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=warmup)
    falling = dict(type='CosineAnnealingLR', by_epoch=False, begin=warmup, end=total, T_max=total - warmup)
    schedule = [rising, falling] if warmup else [falling]
    return dict(optim_wrapper=dict(wrapper, paramwise_cfg=rules), param_scheduler=schedule)
