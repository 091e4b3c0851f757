"""Fine-tuning on folders with images of three colors."""

import numpy as np
import pytest
import torch
from testing.distributed import run_distributed
from testing.evaluation_encoders import make_context, run

from mm_sop.evaluation.classification import finetune
from mm_sop.evaluation.classification.finetune import FinetuneProtocol
from mm_sop.report.evaluation import draw

SHORT = dict(epochs=2, min_iterations=1, batch_size=8)


@pytest.mark.learning
def test_fine_tuning_learns(context, seed, expect):
    context.seed = seed
    options = dict(epochs=6, batch_size=12, learning_rate=0.03, mixup=0.0, cutmix=0.0, fractions=(1, 0.5))
    result = run(FinetuneProtocol(min_iterations=18, **options), context)
    assert list(result.scores) == ['val_class', 'val_class_50%']
    expect('accuracy', result.scores['val_class'].value, above=0.45)
    assert result.card['subsets'] == {'50%': dict(labels=18, tries=1, drawn='per class')}
    assert [image.name for image in draw('finetune', result.data)] == ['confusion_val', 'labels']
    assert all(not parameter.requires_grad for parameter in context.encoder.parameters())


def test_classifier_starts_with_the_weights_of_the_encoder(context):
    settings = finetune.FinetuneSettings(**SHORT)
    classifier = finetune.build_classifier(context.encoder, 32, 3, settings)
    classifier.init_weights()
    batch = dict(inputs=torch.full((2, 3, 32, 32), 90, dtype=torch.uint8), data_samples=None)
    images = classifier.data_preprocessor(batch, False)['inputs']
    torch.testing.assert_close(images, context.encoder.data_preprocessor(batch, False)['inputs'])
    (vectors,) = classifier.eval().extract_feat(images)
    torch.testing.assert_close(vectors, context.encoder.read(batch).global_features)
    names = [type(each).__name__ for each in classifier.data_preprocessor.batch_augments.augments]
    assert names == ['Mixup', 'CutMix']


@pytest.mark.parametrize('kind', ['resnet', 'transformer'])
def test_layers_near_the_image_learn_slower(data, tmp_path, monkeypatch, kind):
    context = make_context(data, tmp_path, kind)
    runners = []
    original = finetune.Runner.train
    monkeypatch.setattr(finetune.Runner, 'train', lambda self: runners.append(self) or original(self))
    run(FinetuneProtocol(**SHORT, layer_decay=0.5, fractions=(1,)), context)
    rates = {group['initial_lr'] for group in runners[0].optim_wrapper.param_groups}
    assert sorted(rates, reverse=True) == pytest.approx([4e-3 * 8 / 256 * 0.5**depth for depth in range(6)])


def test_few_images_are_seen_more_often(context, monkeypatch):
    lengths = []
    original = finetune.Runner.train
    monkeypatch.setattr(finetune.Runner, 'train', lambda self: lengths.append(self.max_iters) or original(self))
    run(FinetuneProtocol(epochs=1, min_iterations=6, batch_size=8, fractions=(1, 0.1)), context)
    # 36 // 8 = 4 steps need two epochs, 3 images make one step.
    assert lengths == [8, 6]


def test_interrupted_fine_tuning_is_resumed(context, monkeypatch):
    protocol = FinetuneProtocol(**dict(SHORT, epochs=5), fractions=(1,))
    straight = run(protocol, make_context(context.data, context.work_dir / 'straight'))
    steps = []
    original = finetune.ImageClassifier.train_step

    def stop(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 11:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(finetune.ImageClassifier, 'train_step', stop)
    with pytest.raises(KeyboardInterrupt):
        run(protocol, context)
    resumed = run(protocol, context)
    # Two of five epochs were saved: 12 of 20 steps remain.
    assert len(steps) == 11 + 12
    assert resumed.scores == straight.scores


def finetuned_buffers(rank, world_size, data, work_dir):
    networks, original = [], finetune._predict

    def predict(context, network, dataset):
        networks.append(network)
        return original(context, network, dataset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, '_predict', predict)
        run(FinetuneProtocol(**SHORT, fractions=(1,)), make_context(data, work_dir))
    return [buffer.float() for buffer in networks[0].buffers()]


def test_processes_evaluate_the_same_classifier(data, tmp_path):
    first, second = run_distributed(finetuned_buffers, data, tmp_path)
    assert len(first) > 10 and all(map(torch.equal, first, second))


def test_fractions_of_the_labels_rise_in_the_chart(context, monkeypatch):
    monkeypatch.setattr(finetune, 'finetune', lambda *args: None)
    monkeypatch.setattr(finetune, '_predict', lambda context, network, dataset: np.zeros(len(dataset), dtype=int))
    result = run(FinetuneProtocol(**SHORT, fractions=(1, 0.25, 0.5)), context)
    assert list(result.data['lines']['val']) == ['25%', '50%', '100%']
