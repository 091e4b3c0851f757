# A receptive field of 33 pixels, the layout of BagNet-33.
_base_ = '../byol_rf99-r50_in100.py'
model = dict(backbone=dict(arch='rf33_bag'))
