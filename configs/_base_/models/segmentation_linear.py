# A linear classifier on a frozen encoder; model.frozen=False fine-tunes it.
model = dict(
    type='SemanticSegmentor',
    # `--pretrained CHECKPOINT` fills it in, `--pretrained none` takes it away.
    init_cfg=dict(type='PretrainedBackbone', checkpoint=None),
    frozen=True,
    head=dict(type='LinearSegmentationHead'))
