# [CLS] alone on a ResNet-18 of a quarter of the usual width, without max-pooling: 15 minutes on 2 CPU cores.
_base_ = [
    '../_base_/models/sop_composites.py',
    '../_base_/datasets/composites_2views.py',
    '../_base_/schedules/composites_adamw.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet_CIFAR',
        depth=18,
        base_channels=16,
        stem_channels=16,
        strides=(2, 2, 2, 2),
        # A short run is too short to activate zero-initialized blocks.
        zero_init_residual=False),
    neck=dict(in_channels=128),
    target_generator=None,
    mim_head=None)
custom_hooks = [_base_.teacher_hook, _base_.knn_hook, dict(type='ReportHook')]
