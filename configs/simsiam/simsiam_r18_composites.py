# A ResNet-18 of a quarter of the usual width on photo composites, 2 processes of 64 images: for 2 CPU cores.
_base_ = [
    '../_base_/models/simsiam.py',
    '../_base_/datasets/composites_2views.py',
    '../_base_/schedules/contrastive_composites.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        type='ResNet_CIFAR',
        depth=18,
        base_channels=16,
        stem_channels=16,
        strides=(2, 2, 2, 2),
        zero_init_residual=False),
    neck=dict(in_channels=128, hid_channels=512, out_channels=512),
    head=dict(predictor=dict(in_channels=512, hid_channels=128, out_channels=512)))
lr = 0.12
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(custom_keys={'predictor': dict(fix_lr=True)}))
custom_hooks = [
    dict(type='SimSiamHook', priority='HIGH', fix_pred_lr=True, lr=lr, adjust_by_epoch=False),
    _base_.knn_hook,
    dict(type='ReportHook')
]
