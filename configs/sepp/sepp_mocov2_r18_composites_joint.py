# Ordinary and semantic positive in one step.
_base_ = '../mocov2/mocov2_r18_composites.py'
train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='SemanticPairDataset',
            manifest='work_dirs/pairs/composites/pairs.json',
            mode='joint',
            dataset=dict(type='UnlabelledImages', data_root=_base_.data_root),
            pipeline=_base_.train_pipeline)))
