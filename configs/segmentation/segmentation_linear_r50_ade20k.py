# resnet50_linear_4xb4-128e_ade20k-512x512
_base_ = [
    '../_base_/models/segmentation_linear.py',
    '../_base_/datasets/ade20k_segmentation.py',
    '../_base_/schedules/segmentation_ade20k.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(type='ResNet', depth=50, out_indices=(2, 3)),
    head=dict(in_channels=[1024, 2048], num_classes=_base_.num_classes, norm_cfg=dict(type='SyncBN')))
