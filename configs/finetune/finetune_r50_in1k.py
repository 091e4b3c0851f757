# finetune_resnet50_8xb128-bf16-coslr-30e_in1k
_base_ = [
    '../_base_/models/classifier_r50.py',
    '../_base_/datasets/imagenet_finetune.py',
    '../_base_/schedules/finetune_sgd.py',
    '../_base_/default_runtime.py',
]
