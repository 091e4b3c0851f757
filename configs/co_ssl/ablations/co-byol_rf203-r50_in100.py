# A receptive field of 203 pixels.
_base_ = '../co-byol_rf99-r50_in100.py'
model = dict(backbone=dict(arch=dict(_delete_=True, depth=50, kept=(3, 4, 4, 0), receptive_field=203)))
