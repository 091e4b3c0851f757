# simsiam_resnet50_8xb32-bf16-coslr-100e_in1k
_base_ = [
    '../_base_/models/simsiam.py',
    '../_base_/datasets/imagenet_mocov2.py',
    '../_base_/schedules/contrastive_sgd.py',
    '../_base_/default_runtime.py',
]
sync_bn = 'torch'
train_cfg = dict(max_epochs=100)
# The learning rate of the predictor is constant and not scaled to the batch size; so neither are the other rates.
lr = 0.05
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(custom_keys={'predictor': dict(fix_lr=True)}))
auto_scale_lr = dict(enable=False)
custom_hooks = [dict(type='SimSiamHook', priority='HIGH', fix_pred_lr=True, lr=lr, adjust_by_epoch=False)]
