# ReSA on ViT-S/16 without BatchNorm: fixed position embedding and frozen random patch embedding, as in MoCo v3.
model = dict(
    type='ReSA',
    backbone=dict(
        type='FixedPositionViT',
        arch=dict(embed_dims=384, num_layers=12, num_heads=6, feedforward_channels=1536),
        img_size=224,
        patch_size=16,
        stop_grad_conv1=True,
        out_type='raw'),
    neck=dict(type='MLPNeck', in_channels=384, hid_channels=2048, out_channels=512),
    head=dict(
        type='ReSAHead', temperature=0.4, predictor=dict(type='MLPNeck', in_channels=512, num_layers=2, pre_norm=True)),
    assigner=dict(type='SinkhornAssigner', epsilon=0.05, iterations=3))
