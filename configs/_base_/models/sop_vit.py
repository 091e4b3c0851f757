# SOP with the released preset on ViT-S/16: 64 anchors in each of 4 tasks, halved, with 8 supports; 512 patch anchors.
embed_dims = 256
model = dict(
    type='SOP',
    backbone=dict(type='MaskedVisionTransformer', arch='deit-small', img_size=224, patch_size=16, drop_path_rate=0.1),
    neck=dict(type='SOPNeck', in_channels=384, hid_channels=2048, out_channels=embed_dims),
    head=dict(
        type='SOPHead',
        student_temperature=0.1,
        teacher_temperature=0.04,
        prototypes=dict(
            type='PrototypeSampler',
            bank=dict(type='SupportEmbeddingBank', size=65536, embed_dims=embed_dims),
            num_anchors=64,
            num_supports=8,
            num_tasks=4,
            anchor_weight=0.9,
            anchor_selection='uniform')),
    target_generator=dict(
        type='SOPMIMTargetGenerator',
        teacher_temperature=0.04,
        prototypes=dict(
            type='PrototypeSampler',
            bank=dict(type='SupportEmbeddingBank', size=8192, embed_dims=embed_dims),
            num_anchors=512,
            num_supports=0,
            num_tasks=1,
            anchor_weight=0.9,
            anchor_selection='all')),
    mim_head=dict(type='SOPMIMHead', student_temperature=0.1))
