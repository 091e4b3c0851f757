# Two views of 64 pixels with BYOL's unequal augmentations without blur, from a folder of images such as
# Tiny-ImageNet's `train`.
_base_ = './two_views.py'
data_root = 'data/tiny-imagenet-200/train'

view_pipeline = [dict(_base_.crop, scale=64), _base_.flip, _base_.color_jitter, _base_.grayscale]
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='FastMultiView', num_views=[1, 1], transforms=[view_pipeline, [*view_pipeline, _base_.solarize]]),
    dict(type='PackInputs'),
]
train_dataloader = dict(pin_memory=True, dataset=dict(dataset=dict(data_root=data_root, pipeline=train_pipeline)))
