# A receptive field of 427 pixels: a ResNet-50 with the MLP.
_base_ = '../byol_rf99-r50_in100.py'
model = dict(backbone=dict(arch=dict(_delete_=True, depth=50, kept=(3, 4, 6, 3), receptive_field=427)))
