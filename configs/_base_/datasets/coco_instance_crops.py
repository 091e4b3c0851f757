# COCO with boxes and masks, shorter side 480 to 800, half of the images cropped first: as in iBOT's evaluation.
_base_ = 'mmdet::_base_/datasets/coco_instance.py'

resize = dict(type='RandomChoiceResize', scales=[(1333, side) for side in range(480, 801, 32)], keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [resize],
            [
                dict(type='RandomChoiceResize', scales=[(1333, 400), (1333, 500), (1333, 600)], keep_ratio=True),
                dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
                resize,
            ],
        ]),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(worker_init_fn=dict(type='pretrain_worker_init'), dataset=dict(pipeline=train_pipeline))
