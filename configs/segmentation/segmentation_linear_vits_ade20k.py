# vit-small-p16_linear-last4_4xb4-128e_ade20k-512x512
_base_ = [
    '../_base_/models/segmentation_linear.py',
    '../_base_/datasets/ade20k_segmentation.py',
    '../_base_/schedules/segmentation_ade20k.py',
    '../_base_/default_runtime.py',
]
# SOP and iBOT read blocks 3, 5, 7 and 11: out_indices=(3, 5, 7, 11).
model = dict(
    backbone=dict(
        type='MaskedVisionTransformer',
        arch='deit-small',
        img_size=224,
        patch_size=16,
        out_type='featmap',
        out_indices=(8, 9, 10, 11)),
    head=dict(in_channels=[384] * 4, num_classes=_base_.num_classes, norm_cfg=dict(type='SyncBN')),
    window=dict(size=(512, 512), stride=(341, 341)))
