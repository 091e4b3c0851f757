# Two views of 224 pixels: FIRST the weak one, whose encodings determine the assignment, then the strong one.
# Works for any folder of images: only `data_root` changes.
_base_ = './two_views.py'
data_root = 'data/imagenet/train'

# The released code resizes the weak view with Pillow's bilinear filter and the strong one with the bicubic filter.
crop = dict(scale=224, crop_ratio_range=(0.2, 1.0))
weak_pipeline = [dict(crop, type='RandomResizedCrop', backend='pillow', interpolation='bilinear'), _base_.flip]
color_transforms = [_base_.color_jitter, _base_.grayscale, _base_.blur]
strong_pipeline = [dict(crop, type='FastRandomResizedCrop'), *color_transforms, _base_.solarize, _base_.flip]
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='FastMultiView', num_views=[1, 1], transforms=[weak_pipeline, strong_pipeline]),
    dict(type='PackInputs'),
]
train_dataloader = dict(pin_memory=True, dataset=dict(dataset=dict(data_root=data_root, pipeline=train_pipeline)))
