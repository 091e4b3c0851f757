# SimCLR on images and semantic pairs.
_base_ = [
    '../_base_/models/simclr_composites.py',
    '../_base_/datasets/composites_2views.py',
    '../_base_/schedules/contrastive_composites.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='SemanticPairDataset',
            manifest='work_dirs/pairs/composites/pairs.json',
            dataset=dict(type='UnlabeledImages', data_root=_base_.data_root),
            pipeline=_base_.train_pipeline)))
custom_hooks = [_base_.knn_hook, dict(type='ReportHook')]
