# STL-10: two views of 96 pixels from the unlabeled and the training images, with the augmentations of MoCo v2.
# `data_root` is the unpacked stl10_binary.
_base_ = './two_views.py'
data_root = 'data/stl10_binary'

view_pipeline = [
    dict(_base_.crop, scale=96, crop_ratio_range=(0.2, 1.0)),
    dict(_base_.color_jitter, transforms=[dict(_base_.jitter, saturation=0.4)]),
    _base_.grayscale,
    _base_.blur,
    _base_.flip,
]
train_pipeline = [dict(type='FastMultiView', num_views=2, transforms=[view_pipeline]), dict(type='PackInputs')]
images = dict(type='STL10Images', data_root=data_root)
train_dataloader = dict(pin_memory=True, dataset=dict(dataset=dict(images, pipeline=train_pipeline)))

labeled = dict(images, labeled=True, pipeline=[dict(type='PackInputs')])
knn_hook = dict(
    type='KNNHook',
    bank=dict(labeled, split='train'),
    queries=dict(test=dict(labeled, split='test')),
    num_neighbors=[20, 200],
    interval=20)
