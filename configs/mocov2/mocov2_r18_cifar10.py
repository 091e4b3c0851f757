# mocov2_resnet18-cifar_1xb512-bf16-coslr-800e_cifar10: 3x3 stem without pooling.
_base_ = [
    '../_base_/models/mocov2.py',
    '../_base_/datasets/cifar10_2views.py',
    '../_base_/schedules/contrastive_sgd.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(type='ResNet_CIFAR', depth=18),
    neck=dict(in_channels=512, hid_channels=512),
    head=dict(temperature=0.1),
    queue_len=4096)
train_cfg = dict(max_epochs=800)
optim_wrapper = dict(optimizer=dict(lr=0.03, weight_decay=5e-4))
custom_hooks = [_base_.knn_hook]
