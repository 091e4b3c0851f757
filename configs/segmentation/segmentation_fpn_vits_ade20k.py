# vit-small-p16_fpn_4xb4-128e_ade20k-512x512
_base_ = [
    '../_base_/models/segmentation_fpn.py',
    '../_base_/datasets/ade20k_segmentation.py',
    '../_base_/schedules/segmentation_ade20k.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        type='WindowedVisionTransformer',
        window_size=None,
        arch='deit-small',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=384, num_outs=4),
    head=dict(num_classes=_base_.num_classes, norm_cfg=dict(type='SyncBN')),
    window=dict(size=(512, 512), stride=(341, 341)))
optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.65,
        bias_decay_mult=0.0,
        norm_decay_mult=0.0,
        custom_keys=dict(cls_token=dict(decay_mult=0.0), pos_embed=dict(decay_mult=0.0))),
    optimizer=dict(lr=1e-4))
