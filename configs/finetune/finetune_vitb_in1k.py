# finetune_vit-base-p16_8xb128-bf16-coslr-100e_in1k
_base_ = [
    '../_base_/models/classifier_vit.py',
    '../_base_/datasets/imagenet_finetune_strong.py',
    '../_base_/schedules/finetune_vit.py',
    '../_base_/default_runtime.py',
]
model = dict(backbone=dict(arch='deit-base', drop_path_rate=0.2), head=dict(in_channels=768))
train_cfg = dict(max_epochs=100)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.65))
