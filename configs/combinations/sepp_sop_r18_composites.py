# The two views of SOP show a semantic pair half of the time if there is one (SePP).
_base_ = '../sop/r18_composites.py'
train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='SemanticPairDataset',
            manifest='work_dirs/pairs/composites/pairs.json',
            mode='replace',
            dataset=dict(type='UnlabeledImages', data_root=_base_.data_root),
            pipeline=_base_.train_pipeline)))
