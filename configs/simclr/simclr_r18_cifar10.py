# simclr_resnet18-cifar_1xb512-bf16-coslr-800e_cifar10: 3x3 stem without pooling.
_base_ = [
    '../_base_/models/simclr.py',
    '../_base_/datasets/cifar10_2views.py',
    '../_base_/schedules/contrastive_sgd.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(type='ResNet_CIFAR', depth=18),
    neck=dict(in_channels=512, hid_channels=512),
    head=dict(temperature=0.5))
train_cfg = dict(max_epochs=800)
optim_wrapper = dict(optimizer=dict(lr=0.03, weight_decay=5e-4))
custom_hooks = [_base_.knn_hook]
# SimCLR's stronger crops and color changes.
jitter = dict(type='FastColorJitter', brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
view_pipeline = [
    dict(_base_.view_pipeline[0], crop_ratio_range=(0.08, 1.0)),
    _base_.view_pipeline[1],
    dict(_base_.view_pipeline[2], transforms=[jitter]),
    _base_.view_pipeline[3],
]
train_pipeline = [dict(_base_.train_pipeline[0], transforms=[view_pipeline]), _base_.train_pipeline[1]]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
