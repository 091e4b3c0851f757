# ReSA on a ResNet-18 of a quarter of the usual width, with a predictor: meant for 2 CPU cores.
_base_ = [
    '../_base_/models/resa_resnet18_small.py',
    '../_base_/datasets/resa_composites.py',
    '../_base_/datasets/composites_knn.py',
    '../_base_/schedules/resa_composites.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(base_channels=16, stem_channels=16, strides=(2, 2, 2, 2)),
    neck=dict(in_channels=128, hid_channels=512, out_channels=128),
    head=dict(
        predictor=dict(
            type='NonLinearNeck',
            in_channels=128,
            hid_channels=512,
            out_channels=128,
            with_bias=True,
            with_last_bias=True,
            with_last_bn=False,
            with_avg_pool=False,
            norm_cfg=dict(type='BN1d'))))
custom_hooks = [_base_.teacher_hook, _base_.knn_hook, dict(type='ReportHook')]
