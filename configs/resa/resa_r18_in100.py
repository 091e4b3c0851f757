# resa_resnet18_1xb256-amp-coslr-400e_in100: the recipe is not published; the weight decay is that of related methods.
# Residual branches are zero-initialized, as in the authors' current code; earlier only for ResNet-50.
_base_ = './resa_r50_b256_100e.py'
model = dict(backbone=dict(depth=18), neck=dict(in_channels=512))
train_dataloader = dict(dataset=dict(dataset=dict(data_root='data/imagenet100/train')))
train_cfg = dict(max_epochs=400)
optim_wrapper = dict(optimizer=dict(weight_decay=2.5e-5))
