# The stem of the released code, which pads pictures by a pixel more: maps of 34, 34, 17, 9 and 5 places.
_base_ = './resa_r18_cifar10.py'
model = dict(backbone=dict(type='PaddedResNetCIFAR', extra_pad=1))
