# Composites of photographs, made by `tools/prepare_data.py composites`: FIRST the weak view of 48 pixels, then the
# strong one, whose colours change 0.4 times as much as on ImageNet.
data_root = 'data/composites/pretrain'

# Pictures are BGR until the preprocessor, as MMCV's colour functions expect.
data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)

weak_pipeline = [
    dict(type='FastRandomResizedCrop', scale=48, crop_ratio_range=(0.5, 1.0)),
    dict(type='RandomFlip', prob=0.5),
]
strong_pipeline = [
    dict(type='FastRandomResizedCrop', scale=48, crop_ratio_range=(0.5, 1.0)),
    dict(
        type='RandomApply',
        prob=0.8,
        transforms=[
            dict(
                type='FastColorJitter',
                brightness=0.16,
                contrast=0.16,
                saturation=0.08,
                hue=0.04)
        ]),
    dict(
        type='RandomGrayscale',
        prob=0.08,
        keep_channels=True,
        channel_weights=(0.114, 0.587, 0.2989)),
    dict(type='RandomFlip', prob=0.5),
]

train_pipeline = [
    dict(type='LoadPicture'),
    dict(type='MultiView', num_views=[1, 1], transforms=[weak_pipeline, strong_pipeline]),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='ResumableSampler', shuffle=True),
    worker_init_fn=dict(type='pretrain_worker_init'),
    dataset=dict(
        type='SeededDataset',
        dataset=dict(
            type='UnlabelledImages', data_root=data_root, pipeline=train_pipeline)))
