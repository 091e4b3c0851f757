# As many updates as the baseline: half of the time a partner takes the place of the second view.
_base_ = '../mocov2/mocov2_r18_composites.py'
train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='SemanticPairDataset',
            manifest='work_dirs/pairs/composites/pairs.json',
            mode='replace',
            partner_prob=0.5,
            dataset=dict(type='UnlabelledImages', data_root=_base_.data_root),
            pipeline=_base_.train_pipeline)))
