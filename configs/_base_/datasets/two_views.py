# What all pretraining datasets share: images of any folder in two augmented views, in the seeded, resumable loader.
# Each dataset builds its views from the transforms here.

# Images are BGR until the preprocessor, as MMCV's color functions expect.
data_preprocessor = dict(
    type='MultiViewDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

# BYOL's colors; FastRandomResizedCrop is antialiased bicubic like Pillow's resizing, at the speed of OpenCV.
crop = dict(type='FastRandomResizedCrop', scale=224, crop_ratio_range=(0.08, 1.0))
flip = dict(type='RandomFlip', prob=0.5)
jitter = dict(type='FastColorJitter', brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
color_jitter = dict(type='RandomApply', prob=0.8, transforms=[jitter])
grayscale = dict(type='RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989))
blur = dict(type='GaussianBlur', magnitude_range=(0.1, 2.0), magnitude_std='inf', prob=0.5)
solarize = dict(type='Solarize', thr=128, prob=0.2)

train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='ResumableSampler', shuffle=True),
    worker_init_fn=dict(type='pretrain_worker_init'),
    dataset=dict(type='SeededDataset', dataset=dict(type='UnlabeledImages')))
