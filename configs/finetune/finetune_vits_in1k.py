# finetune_vit-small-p16_8xb128-bf16-coslr-200e_in1k
_base_ = [
    '../_base_/models/classifier_vit.py',
    '../_base_/datasets/imagenet_finetune_strong.py',
    '../_base_/schedules/finetune_vit.py',
    '../_base_/default_runtime.py',
]
