_base_ = '../simsiam/simsiam_r18_composites.py'
train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='SemanticPairDataset',
            manifest='work_dirs/pairs/composites/pairs.json',
            dataset=dict(type='UnlabeledImages', data_root=_base_.data_root),
            pipeline=_base_.train_pipeline)))
