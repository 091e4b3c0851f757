_base_ = '../simclr/simclr_r18_stl10.py'
train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='SemanticPairDataset',
            manifest='work_dirs/pairs/stl10/pairs.json',
            dataset=dict(type='STL10Images', data_root=_base_.data_root),
            pipeline=_base_.train_pipeline)))
