# Two global views without local ones, for which SOP and iBOT use larger crops.
_base_ = './imagenet_sop.py'

crop = dict(type='FastRandomResizedCrop', scale=224, crop_ratio_range=(0.14, 1.0))
global_pipeline1 = [crop, *_base_.global_pipeline1[1:]]
global_pipeline2 = [crop, *_base_.global_pipeline2[1:]]
train_pipeline = [
    _base_.train_pipeline[0],
    dict(type='MultiView', num_views=[1, 1], transforms=[global_pipeline1, global_pipeline2]),
    *_base_.train_pipeline[2:],
]

train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
