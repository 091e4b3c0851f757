# resnet50_fpn_4xb4-128e_ade20k-512x512
_base_ = [
    '../_base_/models/segmentation_fpn.py',
    '../_base_/datasets/ade20k_segmentation.py',
    '../_base_/schedules/segmentation_ade20k.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(type='ResNet', depth=50, out_indices=(0, 1, 2, 3), norm_cfg=dict(type='SyncBN')),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
    head=dict(num_classes=_base_.num_classes, norm_cfg=dict(type='SyncBN')))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
