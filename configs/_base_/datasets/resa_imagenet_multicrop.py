# Weak and strong view of 224 pixels, then ten strong local crops of 96 without solarization.
_base_ = './resa_imagenet.py'

weak_pipeline = [dict(_base_.weak_pipeline[0], crop_ratio_range=(0.32, 1.0)), *_base_.weak_pipeline[1:]]
strong_pipeline = [dict(_base_.strong_pipeline[0], crop_ratio_range=(0.32, 1.0)), *_base_.strong_pipeline[1:]]
local_crop = dict(type='FastRandomResizedCrop', scale=96, crop_ratio_range=(0.05, 0.32))
local_pipeline = [local_crop, *_base_.color_transforms, _base_.flip]
train_pipeline = [
    _base_.train_pipeline[0],
    dict(type='FastMultiView', num_views=[1, 1, 10], transforms=[weak_pipeline, strong_pipeline, local_pipeline]),
    _base_.train_pipeline[-1],
]
train_dataloader = dict(batch_size=128, dataset=dict(dataset=dict(pipeline=train_pipeline)))
