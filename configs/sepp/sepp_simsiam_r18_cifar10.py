_base_ = '../simsiam/simsiam_r18_cifar10.py'
train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='SemanticPairDataset',
            manifest='work_dirs/pairs/cifar10/pairs.json',
            dataset=dict(type='CIFAR10Images', data_root=_base_.data_root),
            pipeline=_base_.train_pipeline)))
