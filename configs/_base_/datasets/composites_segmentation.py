# Scenes of photo composites with label maps, made by `tools/prepare_data.py composites`: 160 x 128 pixels, ten classes and
# the background, which is a class of its own here.
data_root = 'data/composites/segmentation'
metainfo = dict(
    classes=('background', 'birds', 'fish', 'flowers', 'fruit', 'mammals', 'music', 'signs',
             'tools', 'vegetables', 'vehicles'),
    palette=[[0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200],
             [245, 130, 48], [145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60],
             [250, 190, 212]])
num_classes = 11

data_preprocessor = dict(
    type='mmdet.DetDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_seg=True)

load_map = dict(type='LoadSegmentationMap', num_classes=num_classes)
pack = dict(type='mmdet.PackDetInputs', meta_keys=('img_path', 'ori_shape', 'img_shape'))
train_pipeline = [
    dict(type='LoadPicture'),
    load_map,
    dict(
        type='RandomResize',
        scale=(160, 128),
        ratio_range=(1.0, 1.5),
        keep_ratio=True,
        resize_type='mmdet.Resize'),
    dict(type='mmdet.RandomCrop', crop_size=(128, 160)),
    dict(type='mmdet.RandomFlip', prob=0.5),
    pack,
]
test_pipeline = [dict(type='LoadPicture'), load_map, pack]

train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='ResumableSampler', shuffle=True),
    worker_init_fn=dict(type='pretrain_worker_init'),
    dataset=dict(
        type='SeededDataset',
        dataset=dict(
            type='SegmentationImages',
            data_root=data_root,
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            metainfo=metainfo,
            pipeline=train_pipeline)))
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='SegmentationImages',
        data_root=data_root,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='SegmentationMetric', classwise=True)
test_evaluator = val_evaluator
