# ADE20K of the scene parsing challenge, in its distributed layout, in crops of 512 pixels.
data_root = 'data/ADEChallengeData2016'
num_classes = 150
crop_size = (512, 512)

data_preprocessor = dict(
    type='mmdet.DetDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    # The patch of a ViT-S/16, the coarsest stride of a ResNet
    pad_size_divisor=32,
    pad_seg=True)

load_map = dict(type='LoadSegmentationMap', num_classes=num_classes, reduce_zero_label=True)
pack = dict(type='mmdet.PackDetInputs', meta_keys=('img_path', 'ori_shape', 'img_shape'))
train_pipeline = [
    dict(type='LoadImage'),
    load_map,
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True, resize_type='mmdet.Resize'),
    dict(type='mmdet.RandomCrop', crop_size=crop_size),
    dict(type='mmdet.RandomFlip', prob=0.5),
    dict(type='mmdet.PhotoMetricDistortion'),
    pack,
]
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='mmdet.Resize', scale=(2048, 512), keep_ratio=True),
    # The labels keep their size: predictions are resized to it.
    load_map,
    pack,
]

train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='ResumableSampler', shuffle=True),
    worker_init_fn=dict(type='pretrain_worker_init'),
    dataset=dict(
        type='SeededDataset',
        dataset=dict(
            type='ADE20KImages',
            data_root=data_root,
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            pipeline=train_pipeline)))
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ADE20KImages',
        data_root=data_root,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='SegmentationMetric')
test_evaluator = val_evaluator
