# mocov2_resnet18_1xb256-bf16-coslr-400e_stl10: images of 96 pixels.
_base_ = [
    '../_base_/models/mocov2.py',
    '../_base_/datasets/stl10_2views.py',
    '../_base_/schedules/contrastive_sgd.py',
    '../_base_/default_runtime.py',
]
model = dict(backbone=dict(depth=18), neck=dict(in_channels=512, hid_channels=512), queue_len=16384)
train_cfg = dict(max_epochs=400)
optim_wrapper = dict(optimizer=dict(lr=0.06, weight_decay=5e-4))
custom_hooks = [_base_.knn_hook]
