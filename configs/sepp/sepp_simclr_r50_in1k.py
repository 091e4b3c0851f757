# sepp-simclr_resnet50_8xb128-bf16-coslr-800e_in1k
_base_ = '../simclr/simclr_r50_in1k.py'
train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='SemanticPairDataset',
            manifest='work_dirs/pairs/in1k/pairs.json',
            dataset=dict(type='UnlabeledImages', data_root=_base_.data_root),
            pipeline=_base_.train_pipeline)))
