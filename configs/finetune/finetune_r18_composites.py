# finetune_resnet18-narrow_1xb64-coslr-10e_composites: the ResNet of sop/r18_composites.py.
_base_ = [
    '../_base_/models/classifier_vit.py',
    '../_base_/datasets/composites_finetune.py',
    '../_base_/schedules/finetune_composites.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        _delete_=True, type='ResNet_CIFAR', depth=18, base_channels=16, stem_channels=16, strides=(2, 2, 2, 2)),
    neck=dict(type='GlobalNeck'),
    head=dict(num_classes=10, in_channels=128, init_cfg=dict(std=0.01)))
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.75, flat_decay_mult=0.0))
