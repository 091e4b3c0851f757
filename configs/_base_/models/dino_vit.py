# DINO on ViT-S/16, with the authors' weight initialization and resizing of position embeddings.
model = dict(
    type='DINO',
    backbone=dict(type='MaskedVisionTransformer', arch='deit-small', img_size=224, patch_size=16, drop_path_rate=0.1),
    neck=dict(type='DINONeck', in_channels=384, num_prototypes=65536),
    head=dict(type='DINOHead', num_prototypes=65536))
