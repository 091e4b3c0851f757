# CIFAR-10: two views of 32 pixels, without blur. Downloaded into an existing folder `data_root`.
_base_ = './two_views.py'
data_root = 'data/cifar10'
data_preprocessor = dict(mean=[125.307, 122.961, 113.8575], std=[62.985, 62.0925, 66.708])

view_pipeline = [
    dict(_base_.crop, scale=32, crop_ratio_range=(0.2, 1.0)),
    _base_.flip,
    dict(_base_.color_jitter, transforms=[dict(_base_.jitter, saturation=0.4)]),
    _base_.grayscale,
]
train_pipeline = [dict(type='FastMultiView', num_views=2, transforms=[view_pipeline]), dict(type='PackInputs')]
images = dict(type='CIFAR10Images', data_root=data_root)
train_dataloader = dict(batch_size=512, pin_memory=True, dataset=dict(dataset=dict(images, pipeline=train_pipeline)))

labeled = dict(images, labeled=True, pipeline=[dict(type='PackInputs')])
knn_hook = dict(
    type='KNNHook', bank=labeled, queries=dict(test=dict(labeled, split='test')), num_neighbors=[20, 200], interval=20)
