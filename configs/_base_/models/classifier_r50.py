# ResNet-50 with a linear head on the pooled map.
model = dict(
    type='ImageClassifier',
    init_cfg=dict(type='PretrainedBackbone', checkpoint=None),
    backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='SyncBN')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=2048, loss=dict(type='CrossEntropyLoss')))
