# ReSA on a ResNet-18 of a quarter of the usual width, with a predictor: meant for 2 CPU cores.
_base_ = [
    '../_base_/models/resa_resnet18_small.py',
    '../_base_/datasets/composites_2views.py',
    '../_base_/schedules/composites_sgd.py',
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
# FIRST the weak view, only crop and flip, then the strong one.
views = dict(type='FastMultiView', num_views=[1, 1], transforms=[_base_.view_pipeline[:2], _base_.view_pipeline])
train_pipeline = [_base_.train_pipeline[0], views, _base_.train_pipeline[-1]]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
custom_hooks = [dict(_base_.teacher_hook, lead=1), _base_.knn_hook, dict(type='ReportHook')]
