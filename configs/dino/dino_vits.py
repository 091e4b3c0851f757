# dino_vit-small-p16_8xb64-bf16-coslr-100e_in1k: multi-crop, the published recipe for 100 epochs.
_base_ = [
    '../_base_/models/dino_vit.py',
    '../_base_/datasets/imagenet_dino.py',
    '../_base_/schedules/sop.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=64)
custom_hooks = [dict(type='TeacherHook', momentum=0.996, end_momentum=1.0), dict(type='FreezePrototypesHook', epochs=1)]
