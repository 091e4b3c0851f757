# Detection with this project's runner, loop and checkpoints, in MMDetection's scope.
custom_imports = dict(imports=['mm_sop'], allow_failed_imports=False)
runner_type = 'PretrainRunner'
default_scope = 'mmdet'

default_hooks = dict(
    runtime_info=dict(type='mmpretrain.DeferredRuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    throughput=dict(type='mmpretrain.ThroughputHook', interval=50),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    checkpoint=dict(type='mmpretrain.PretrainCheckpointHook', epochs=1, max_keep_ckpts=2),
    bad_images=dict(type='mmpretrain.BadImageHook', interval=50),
    visualization=dict(type='DetVisualizationHook'))

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # NCCL with CUDA, gloo without
    dist_cfg=dict())

log_processor = dict(type='LogProcessor', window_size=50)
log_level = 'INFO'

vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')

randomness = dict(seed=0, diff_rank_seed=True)

load_from = None
resume = False
