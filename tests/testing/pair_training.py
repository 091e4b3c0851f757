"""Small training runs with semantic pairs, for tests."""

from mmengine.config import Config

VIEW = [dict(type='FastRandomResizedCrop', scale=16), dict(type='RandomFlip', prob=0.5)]
PIPELINE = [
    dict(type='LoadImage'),
    dict(type='MultiView', num_views=2, transforms=[VIEW]),
    dict(type='PackInputs'),
]
BACKBONE = dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4, strides=(2, 2, 2, 2))
NECK = dict(type='NonLinearNeck', in_channels=32, hid_channels=16, out_channels=8, num_layers=2)
CONTRAST = dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.2)
PREDICT = dict(
    type='LatentPredictHead',
    loss=dict(type='CosineSimilarityLoss'),
    predictor=dict(type='NonLinearNeck', in_channels=8, hid_channels=16, out_channels=8, with_avg_pool=False),
)
MODELS = dict(
    MoCo=dict(neck=dict(NECK, type='MoCoV2Neck', num_layers=None), head=CONTRAST, queue_len=16, feat_dim=8),
    SimCLR=dict(neck=NECK, head=CONTRAST),
    SimSiam=dict(neck=NECK, head=PREDICT),
    BYOL=dict(neck=NECK, head=PREDICT),
)
MODELS['MoCo']['neck'].pop('num_layers')


def make_config(work_dir, images, model, manifest=None, max_iters=6, **options):
    source = dict(type='UnlabeledImages', data_root=str(images))
    dataset = dict(source, pipeline=PIPELINE)
    if manifest is not None:
        dataset = dict(type='SemanticPairDataset', dataset=source, manifest=manifest, pipeline=PIPELINE, **options)
    method = model['type'].removeprefix('Semantic')
    return Config(
        dict(
            default_scope='mmpretrain',
            work_dir=str(work_dir),
            model=dict(
                MODELS[method], backbone=BACKBONE, data_preprocessor=dict(mean=[120] * 3, std=[60] * 3), **model
            ),
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                drop_last=True,
                collate_fn=dict(type='default_collate'),
                sampler=dict(type='ResumableSampler', seed=3),
                dataset=dict(type='SeededDataset', dataset=dataset),
            ),
            train_cfg=dict(type='PretrainLoop', max_iters=max_iters),
            optim_wrapper=dict(
                type='PretrainOptimWrapper',
                optimizer=dict(type='SGD', lr=0.05, momentum=0.9),
                paramwise_cfg=dict(custom_keys={'predictor': dict(fix_lr=True)}),
            ),
            param_scheduler=[dict(type='CosineAnnealingLR', T_max=6, by_epoch=False)],
            default_hooks=dict(
                runtime_info=dict(type='DeferredRuntimeInfoHook'),
                checkpoint=dict(type='PretrainCheckpointHook', interval=1, max_keep_ckpts=-1),
                bad_images=dict(type='BadImageHook', interval=5),
            ),
            custom_hooks=[dict(type='SimSiamHook', fix_pred_lr=True, lr=0.05, adjust_by_epoch=False)],
            randomness=dict(seed=3, diff_rank_seed=True),
            log_level='WARNING',
        )
    )
