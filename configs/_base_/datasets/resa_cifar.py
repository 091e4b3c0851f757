# CIFAR-10: FIRST the weak view, then the strong one, without blur. Downloaded into an existing folder `data_root`.
_base_ = './two_views.py'
data_root = 'data/cifar10'
data_preprocessor = dict(mean=[125.307, 122.961, 113.8575], std=[62.985, 62.0925, 66.708])

crop = dict(scale=32, crop_ratio_range=(0.2, 1.0))
weak_pipeline = [dict(crop, type='RandomResizedCrop', backend='pillow', interpolation='bilinear'), _base_.flip]
strong_pipeline = [
    dict(crop, type='FastRandomResizedCrop'), _base_.color_jitter, _base_.grayscale, _base_.solarize, _base_.flip
]
train_pipeline = [
    dict(type='FastMultiView', num_views=[1, 1], transforms=[weak_pipeline, strong_pipeline]),
    dict(type='PackInputs'),
]
images = dict(type='CIFAR10Images', data_root=data_root)
train_dataloader = dict(num_workers=4, dataset=dict(dataset=dict(images, pipeline=train_pipeline)))

labeled = dict(images, labeled=True, pipeline=[dict(type='PackInputs')])
knn_hook = dict(
    type='KNNHook', bank=labeled, queries=dict(test=dict(labeled, split='test')), num_neighbors=[5, 20], interval=20)
