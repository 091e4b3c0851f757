# Another layout with a receptive field of 99 pixels.
_base_ = '../co-byol_rf99-r50_in1k.py'
model = dict(backbone=dict(arch='rf99_bag'))
