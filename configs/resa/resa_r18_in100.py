# resa_resnet18_1xb256-amp-coslr-400e_in100: nobody has published the recipe; the weight decay is that of sibling methods.
# Residual branches start at zero, as in the authors' present code; before, they did so for ResNet-50 only.
_base_ = './resa_r50_b256_100e.py'
model = dict(
    backbone=dict(depth=18), neck=dict(in_channels=512))
train_dataloader = dict(dataset=dict(dataset=dict(data_root='data/imagenet100/train')))
train_cfg = dict(max_epochs=400)
optim_wrapper = dict(optimizer=dict(weight_decay=2.5e-5))
