from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmpretrain.registry import DATASETS, HOOKS
from mmpretrain.structures import DataSample
from testing.siamese_models import siamese_config
from testing.toy_training import differences, state_of, train
from torch.utils.data import Dataset

from mm_sop.engine.hooks import FreezePrototypesHook
from mm_sop.functional import cosine_schedule


@DATASETS.register_module()
class ToyViews(Dataset):
    """Two noisy views of random images."""

    metainfo = dict(dataset_type='toy')

    def __len__(self):
        return 30

    def __getitem__(self, index):
        image = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(index))
        views = [image + 0.1 * torch.randn(3, 16, 16) for _ in range(2)]
        return dict(inputs=views, data_samples=DataSample())


@HOOKS.register_module()
class RecordWeights(Hook):
    """Copies of the prototypes of vectors and cells, a hidden layer and the teacher's prototypes, by iteration."""

    def before_train(self, runner):
        self.history = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = runner.model
        layers = model.neck, model.local_head.projector, model.teacher['neck']
        weights = [layer.prototypes.weight for layer in layers] + [model.neck.projector.layers[0].weight]
        self.history.append([weight.detach().clone() for weight in weights])


def run(work_dir, method='dino', **changes):
    """3 epochs of 7 iterations, two accumulated."""
    options = {
        'model': siamese_config(method, local=dict(num_cells=4)),
        'train_dataloader.dataset.dataset': dict(type='ToyViews'),
        'optim_wrapper.optimizer': dict(type='FastLARS', lr=0.5, weight_decay=0.01, eta=0.02),
        'custom_hooks': [dict(type='TeacherHook', momentum=0.9)],
        **changes,
    }
    return train(work_dir, **options)


def test_prototypes_do_not_move_at_first(work_dir):
    hooks = [dict(type='TeacherHook'), dict(type='FreezePrototypesHook', epochs=1), dict(type='RecordWeights')]
    runner = run(work_dir, custom_hooks=hooks)
    history = next(hook.history for hook in runner.hooks if isinstance(hook, RecordWeights))
    first, frozen, last = history[0], history[6], history[-1]
    assert [torch.equal(*pair) for pair in zip(first, frozen, strict=True)] == [True, True, True, False]
    assert [torch.equal(*pair) for pair in zip(frozen, last, strict=True)] == [False] * 4


def test_a_model_without_prototypes_is_refused():
    with pytest.raises(ValueError, match="no module called 'prototypes' with trained parameters in Linear"):
        FreezePrototypesHook().before_train(SimpleNamespace(model=torch.nn.Linear(2, 2)))
    with pytest.raises(ValueError, match='epochs must not be negative'):
        FreezePrototypesHook(epochs=-1)


@pytest.mark.parametrize('method', ['byol', 'moco', 'dino'])
def test_a_resumed_run_is_the_straight_run(work_dir, method):
    changes = {'custom_hooks': [dict(type='TeacherHook', momentum=0.9)]}
    if method == 'dino':
        changes['custom_hooks'] += [
            dict(type='TeacherTemperatureHook', start=0.04, end=0.07, warmup_epochs=2),
            dict(type='FreezePrototypesHook', epochs=1.5),
        ]
    changes['default_hooks.checkpoint.max_keep_ckpts'] = -1
    straight = state_of(run(work_dir / 'straight', method, **changes))
    checkpoint = str(work_dir / 'straight' / 'iter_8.pth')
    resumed = run(work_dir / 'resumed', method, **changes, resume=True, load_from=checkpoint)
    assert differences(straight, state_of(resumed)) == []


@HOOKS.register_module()
class RecordMomenta(Hook):
    """Momentum of every update of the teacher."""

    def before_train(self, runner):
        model, runner.model.momenta = runner.model, []
        update = model.update_teacher
        model.update_teacher = lambda momentum: (model.momenta.append(momentum), update(momentum))


def test_teacher_moves_once_for_each_accumulated_step(work_dir):
    hooks = [dict(type='RecordMomenta', priority='HIGH'), dict(type='TeacherHook', momentum=0.9)]
    model = run(work_dir, 'byol', custom_hooks=hooks).model
    assert model.momenta == [cosine_schedule(step, 11, 0.9, 1.0) for step in range(11)]
