# Two global views without local ones, for which SOP and iBOT use larger crops.
_base_ = './imagenet_sop.py'

crop = dict(_base_.crop, crop_ratio_range=(0.14, 1.0))
views = [[crop, *_base_.global_pipeline1[1:]], [crop, *_base_.global_pipeline2[1:]]]
train_pipeline = [
    _base_.train_pipeline[0],
    dict(type='FastMultiView', num_views=[1, 1], transforms=views),
    *_base_.train_pipeline[2:],
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
