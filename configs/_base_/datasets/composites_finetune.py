# The labeled photo composites: crops of 48 pixels from the bank; validation on unseen objects on unseen photos.
_base_ = './imagenet_finetune.py'
data_root = 'data/composites/classes'

data_preprocessor = dict(num_classes=10)
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='FastRandomResizedCrop', scale=48),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='TrimLongSide'),
    dict(type='ResizeEdge', scale=48, interpolation='bicubic', backend='pillow'),
    dict(type='CenterCrop', crop_size=48),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    pin_memory=False,
    dataset=dict(dataset=dict(data_root=data_root + '/bank', pipeline=train_pipeline)))
val_dataloader = dict(
    batch_size=256, num_workers=1, dataset=dict(data_root=data_root + '/test', pipeline=test_pipeline))
