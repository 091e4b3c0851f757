# co-byol_resnet50_8xb256-bf16-coslr-100e_in1k
_base_ = [
    '../_base_/models/co_byol_r50.py',
    '../_base_/datasets/imagenet_byol.py',
    '../_base_/schedules/siamese_lars.py',
    '../_base_/default_runtime.py',
]
