# DINO on ViT-S/16.
model = dict(
    type='DINO',
    backbone=dict(
        type='VisionTransformer',
        arch='deit-small',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        out_type='raw'),
    neck=dict(type='DINONeck', in_channels=384, num_prototypes=65536),
    head=dict(type='DINOHead', num_prototypes=65536))
