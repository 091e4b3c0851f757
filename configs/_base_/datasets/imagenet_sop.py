# Two global views of 224 pixels and ten local ones of 96: the augmentations of SOP, which are those of iBOT.
# Works for any folder of images: only `data_root` changes.
data_root = 'data/imagenet/train'

# Images are BGR until the preprocessor, as MMCV's color functions expect.
data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
    non_blocking=True)

# iBOT's for ViT-B and ViT-L, MaSSL's for all sizes; for ViT-S iBOT has (0.25, 1.0) and (0.05, 0.25).
global_scale = (0.32, 1.0)
local_scale = (0.05, 0.32)

color_transforms = [
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
blur = dict(type='GaussianBlur', magnitude_range=(0.1, 2.0), magnitude_std='inf')

# FastRandomResizedCrop is antialiased bicubic, like the Pillow resizing of the paper, at the speed of OpenCV.
global_pipeline1 = [
    dict(type='FastRandomResizedCrop', scale=224, crop_ratio_range=global_scale),
    *color_transforms,
    dict(**blur, prob=1.0),
]
global_pipeline2 = [
    dict(type='FastRandomResizedCrop', scale=224, crop_ratio_range=global_scale),
    *color_transforms,
    dict(**blur, prob=0.1),
    dict(type='Solarize', thr=128, prob=0.2),
]
local_pipeline = [
    dict(type='FastRandomResizedCrop', scale=96, crop_ratio_range=local_scale),
    *color_transforms,
    dict(**blur, prob=0.5),
]

train_pipeline = [
    dict(type='LoadImage'),
    dict(
        type='MultiView',
        num_views=[1, 1, 10],
        transforms=[global_pipeline1, global_pipeline2, local_pipeline]),
    # iBOT's recipe: half of the views unmasked, the others with 10 to 50 % of the patches masked.
    # The released SOP code: mask_ratio=0.3, mask_ratio_jitter=0.0
    dict(
        type='BlockMaskGenerator',
        grid=(14, 14),
        mask_ratio=(0.0, 0.3),
        mask_ratio_jitter=(0.0, 0.2)),
    # As an algorithm key the mask stays an array on the host, where the model computes the masked positions.
    dict(type='PackInputs', algorithm_keys=['mask']),
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
        dataset=dict(
            type='UnlabeledImages', data_root=data_root, pipeline=train_pipeline)))
