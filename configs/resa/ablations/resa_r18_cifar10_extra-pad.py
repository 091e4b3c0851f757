# The stem of the released code, which pads images by one more pixel: maps with sides of 34, 34, 17, 9 and 5.
_base_ = '../resa_r18_cifar10.py'
model = dict(backbone=dict(type='PaddedResNetCIFAR', extra_pad=1))
