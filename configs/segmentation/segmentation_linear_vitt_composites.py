# vit-tiny-p8_linear_1xb16-4e_composites
_base_ = [
    '../_base_/models/segmentation_linear.py',
    '../_base_/datasets/composites_segmentation.py',
    '../_base_/schedules/segmentation_composites.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        type='MaskedVisionTransformer',
        arch=dict(embed_dims=192, num_layers=6, num_heads=3, feedforward_channels=768),
        img_size=48,
        patch_size=8,
        stem='conv',
        out_type='featmap',
        out_indices=(2, 3, 4, 5)),
    head=dict(in_channels=[192] * 4, num_classes=_base_.num_classes))
optim_wrapper = dict(optimizer=dict(lr=2e-2))
