# CIFAR-10: two views of 32 pixels, without blur. Downloaded into an existing folder `data_root`.
data_root = 'data/cifar10'

# Images are BGR until the preprocessor, as MMCV's color functions expect.
data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    mean=[125.307, 122.961, 113.8575],
    std=[62.985, 62.0925, 66.708],
    to_rgb=True)

view_pipeline = [
    dict(type='FastRandomResizedCrop', scale=32, crop_ratio_range=(0.2, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomApply',
        prob=0.8,
        transforms=[
            dict(
                type='FastColorJitter',
                brightness=0.4,
                contrast=0.4,
                saturation=0.4,
                hue=0.1)
        ]),
    dict(
        type='RandomGrayscale',
        prob=0.2,
        keep_channels=True,
        channel_weights=(0.114, 0.587, 0.2989)),
]
train_pipeline = [
    dict(type='MultiView', num_views=2, transforms=[view_pipeline]),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=512,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='ResumableSampler', shuffle=True),
    worker_init_fn=dict(type='pretrain_worker_init'),
    dataset=dict(
        type='SeededDataset',
        dataset=dict(type='CIFAR10Images', data_root=data_root, pipeline=train_pipeline)))

knn_hook = dict(
    type='KNNHook',
    bank=dict(type='CIFAR10Images', data_root=data_root, labeled=True, pipeline=test_pipeline),
    queries=dict(
        test=dict(
            type='CIFAR10Images',
            data_root=data_root,
            split='test',
            labeled=True,
            pipeline=test_pipeline)),
    num_neighbors=[20, 200],
    interval=20)
