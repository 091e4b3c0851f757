# ImageNet with labels: `train/<class>/` and `val/<class>/` below `data/imagenet`. Only crops and flips, as for ResNets
# and for few labels.
data_root = 'data/imagenet'

# Images are BGR until the preprocessor, as MMCV's color functions expect.
data_preprocessor = dict(
    type='ClsDataPreprocessor',
    num_classes=1000,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='FastRandomResizedCrop', scale=224),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='TrimLongSide'),
    dict(type='ResizeEdge', scale=256, interpolation='bicubic', backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='ResumableSampler', shuffle=True),
    worker_init_fn=dict(type='pretrain_worker_init'),
    dataset=dict(
        type='SeededDataset',
        dataset=dict(type='LabeledImages', data_root=data_root + '/train', pipeline=train_pipeline)))

val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='LabeledImages', data_root=data_root + '/val', pipeline=test_pipeline))
val_evaluator = dict(type='Accuracy', topk=(1, 5))
val_cfg = dict()
