# resa_resnet18_1xb256-coslr-1000e_cifar100
_base_ = './resa_r18_cifar10.py'
data_root = 'data/cifar100'
data_preprocessor = dict(mean=[129.3105, 124.0575, 112.4295], std=[68.1615, 65.382, 70.431])
train_dataloader = dict(dataset=dict(dataset=dict(type='CIFAR100Images', data_root=data_root)))
custom_hooks = _base_.custom_hooks
for cifar in (custom_hooks[1].bank, custom_hooks[1].queries.test):
    cifar.update(type='CIFAR100Images', data_root=data_root)
