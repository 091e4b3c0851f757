custom_imports = dict(imports=['mm_sop'], allow_failed_imports=False)
runner_type = 'PretrainRunner'
default_scope = 'mmpretrain'

default_hooks = dict(
    runtime_info=dict(type='DeferredRuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    throughput=dict(type='ThroughputHook', interval=50),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # Every epoch; the last two and every 50th are kept
    checkpoint=dict(type='PretrainCheckpointHook', epochs=1, max_keep_ckpts=2, keep_every=50),
    bad_images=dict(type='BadImageHook', interval=50),
    collapse_guard=dict(type='CollapseGuardHook', interval=100, action='warn'))

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # NCCL with CUDA, gloo without
    dist_cfg=dict())

log_processor = dict(window_size=50)
log_level = 'INFO'

vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)

# Equal weights on all ranks (rank 0's are broadcast), different dropped paths.
randomness = dict(seed=0, diff_rank_seed=True)

# Views are augmented on the accelerator if there is one, else by the processes that load them.
augment_on = 'auto'

load_from = None
resume = False
