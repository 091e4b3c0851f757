# An MLP four times as wide compensates for part of the lost parameters.
_base_ = '../co-byol_rf29-r18_tiny.py'
model = dict(backbone=dict(mlp=dict(hid_channels=2048)))
