# resa_resnet18_1xb256-coslr-1000e_cifar10
_base_ = [
    '../_base_/models/resa_resnet18_small.py',
    '../_base_/datasets/resa_cifar.py',
    '../_base_/schedules/resa_sgd.py',
    '../_base_/default_runtime.py',
]
train_cfg = dict(max_epochs=1000)
optim_wrapper = dict(dtype='float32', optimizer=dict(lr=0.3, weight_decay=1e-4))
custom_hooks = [_base_.teacher_hook, _base_.knn_hook]
