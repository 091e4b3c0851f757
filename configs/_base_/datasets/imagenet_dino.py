# Multi-crop of DINO: two global views of 224 pixels and eight local ones of 96, for transformers.
_base_ = './imagenet_sop.py'

global_crop = dict(_base_.crop, crop_ratio_range=(0.4, 1.0))
local_crop = dict(_base_.crop, scale=96, crop_ratio_range=(0.05, 0.4))
views = [
    [global_crop, *_base_.global_pipeline1[1:]],
    [global_crop, *_base_.global_pipeline2[1:]],
    [local_crop, *_base_.local_pipeline[1:]],
]
train_pipeline = [
    _base_.train_pipeline[0],
    dict(type='FastMultiView', num_views=[1, 1, 8], transforms=views),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
