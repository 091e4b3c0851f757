# Two views of 64 pixels with BYOL's unequal augmentations without blur, from a folder of images such as
# Tiny-ImageNet's `train`.
data_root = 'data/tiny-imagenet-200/train'

# Images are BGR until the preprocessor, as MMCV's color functions expect.
data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
    non_blocking=True)

view_transforms1 = [
    dict(type='FastRandomResizedCrop', scale=64, crop_ratio_range=(0.08, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomApply',
        prob=0.8,
        transforms=[
            dict(
                type='FastColorJitter',
                brightness=0.4,
                contrast=0.4,
                saturation=0.2,
                hue=0.1)
        ]),
    dict(
        type='RandomGrayscale',
        prob=0.2,
        keep_channels=True,
        channel_weights=(0.114, 0.587, 0.2989)),
]
view_transforms2 = [*view_transforms1, dict(type='Solarize', thr=128, prob=0.2)]

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='MultiView', num_views=[1, 1], transforms=[view_transforms1, view_transforms2]),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='ResumableSampler', shuffle=True),
    worker_init_fn=dict(type='pretrain_worker_init'),
    dataset=dict(
        type='SeededDataset',
        dataset=dict(
            type='UnlabeledImages', data_root=data_root, pipeline=train_pipeline)))
