# resnet18-narrow_linear_1xb16-4e_composites
_base_ = [
    '../_base_/models/segmentation_linear.py',
    '../_base_/datasets/composites_segmentation.py',
    '../_base_/schedules/segmentation_composites.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        type='ResNet_CIFAR',
        depth=18,
        base_channels=16,
        stem_channels=16,
        strides=(2, 2, 2, 2),
        out_indices=(1, 2, 3),
        zero_init_residual=False),
    head=dict(in_channels=[32, 64, 128], num_classes=_base_.num_classes))
optim_wrapper = dict(optimizer=dict(lr=2e-2))
