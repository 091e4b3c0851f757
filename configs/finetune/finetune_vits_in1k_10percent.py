# finetune_vit-small-p16_8xb128-bf16-coslr-1000e_in1k-10percent: SimCLR's list of labels; iBOT's length and learning
# rate.
_base_ = [
    '../_base_/models/classifier_vit.py',
    '../_base_/datasets/imagenet_finetune.py',
    '../_base_/schedules/finetune_vit.py',
    '../_base_/default_runtime.py',
]
train_cfg = dict(max_epochs=1000, val_interval=50)
optim_wrapper = dict(optimizer=dict(lr=5e-6), paramwise_cfg=dict(layer_decay_rate=1.0))
train_dataloader = dict(dataset=dict(dataset=dict(type='ListedImages', subset='data/imagenet/10percent.txt')))
