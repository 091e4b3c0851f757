# [CLS] alone on a ResNet-18 of a quarter of the usual width, with 3x3 convolutions from the start and no max-pooling.
_base_ = './quickstart.py'
model = dict(
    backbone=dict(
        _delete_=True, type='ResNet_CIFAR', depth=18, base_channels=16, stem_channels=16, strides=(2, 2, 2, 2)),
    neck=dict(in_channels=128),
    target_generator=None,
    mim_head=None)
train_cfg = dict(max_epochs=20)
