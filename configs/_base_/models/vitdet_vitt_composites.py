# ViTDet's components at a tenth of their size, on the ViT of configs/sop/vitt_composites.py: a map of 16 x 20 patches
# in windows of 8, the third and the last block with global attention.
_base_ = './mask-rcnn_r18_composites.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='WindowedVisionTransformer',
        arch=dict(embed_dims=192, num_layers=6, num_heads=3, feedforward_channels=768),
        img_size=(128, 160),
        patch_size=8,
        stem='conv',
        window_size=8,
        global_indices=(2, 5)),
    neck=dict(
        _delete_=True, type='SimpleFeaturePyramid', in_channels=192, out_channels=64, scales=(2, 1, 0.5), num_outs=4))
