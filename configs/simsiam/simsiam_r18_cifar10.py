# simsiam_resnet18-cifar_1xb512-bf16-coslr-800e_cifar10: 3x3 stem without pooling.
_base_ = [
    '../_base_/models/simsiam.py',
    '../_base_/datasets/cifar10_2views.py',
    '../_base_/schedules/contrastive_sgd.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(type='ResNet_CIFAR', depth=18),
    neck=dict(in_channels=512, hid_channels=512, out_channels=512),
    head=dict(predictor=dict(in_channels=512, hid_channels=128, out_channels=512)))
train_cfg = dict(max_epochs=800)
# The learning rate of the predictor is constant and not scaled to the batch size; so neither are the other rates.
lr = 0.06
optim_wrapper = dict(
    optimizer=dict(lr=lr, weight_decay=5e-4), paramwise_cfg=dict(custom_keys={'predictor': dict(fix_lr=True)}))
auto_scale_lr = dict(enable=False)
custom_hooks = [
    dict(type='SimSiamHook', priority='HIGH', fix_pred_lr=True, lr=lr, adjust_by_epoch=False),
    _base_.knn_hook
]
