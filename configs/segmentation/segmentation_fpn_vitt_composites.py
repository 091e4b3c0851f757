# vit-tiny-p8_fpn_1xb16-4e_composites
_base_ = [
    '../_base_/models/segmentation_fpn.py',
    '../_base_/datasets/composites_segmentation.py',
    '../_base_/schedules/segmentation_composites.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        type='WindowedVisionTransformer',
        window_size=None,
        arch=dict(embed_dims=192, num_layers=6, num_heads=3, feedforward_channels=768),
        img_size=48,
        patch_size=8,
        stem='conv'),
    neck=dict(
        _delete_=True, type='SimpleFeaturePyramid', in_channels=192, out_channels=64, scales=(2, 1, 0.5), num_outs=3),
    head=dict(in_channels=[64] * 3, channels=64, num_classes=_base_.num_classes))
