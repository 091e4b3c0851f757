# finetune_vit-base-p16_8xb128-bf16-coslr-100e_in1k
_base_ = './finetune_vits_in1k.py'
model = dict(backbone=dict(arch='deit-base', drop_path_rate=0.2), head=dict(in_channels=768))
train_cfg = dict(max_epochs=100)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.65))
