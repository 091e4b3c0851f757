"""What matters in SOP at small scale: one change at a time to the recipes for the photo composites.

``python tools/benchmarks/sop_trials.py --amp --seeds 0`` takes about an hour on two cores. Interrupted, the same
command goes on: finished runs are kept. It writes a JSON file, a readable page and an image.
"""

from composites_runs import Comparison, Variant, parse_args, write_report

EXPLANATION = """\
*r18* is `configs/sop/r18_composites.py`, the [CLS] objective on a small ResNet: 512 anchors, 4 supports, one task, all
anchors kept, a bank of 2,048, KoLeo 0.05, teacher temperature 0.04. *vit* is `configs/sop/quickstart.py`, with masked
patches. Every other row is one change to it. *Untrained* is the network of the first row.
"""
PROTOTYPES = 'model.head.prototypes'
RELEASED = (
    f'{PROTOTYPES}.num_anchors=64',
    f'{PROTOTYPES}.num_supports=8',
    f'{PROTOTYPES}.num_tasks=4',
    f'{PROTOTYPES}.anchor_selection=uniform',
)
MASKS = 'train_dataloader.dataset.dataset.pipeline.2'


def _r18(*options: str) -> Variant:
    return Variant('sop/r18_composites.py', options, base='r18')


def _vit(*options: str) -> Variant:
    return Variant('sop/quickstart.py', options, base='vit')


TRIALS = {
    'r18': Variant('sop/r18_composites.py'),
    'r18, released prototypes': _r18(*RELEASED),
    'r18, 64 anchors': _r18(f'{PROTOTYPES}.num_anchors=64'),
    'r18, 256 anchors': _r18(f'{PROTOTYPES}.num_anchors=256'),
    'r18, 1024 anchors': _r18(f'{PROTOTYPES}.num_anchors=1024'),
    'r18, no supports': _r18(f'{PROTOTYPES}.num_supports=0'),
    'r18, 1 support': _r18(f'{PROTOTYPES}.num_supports=1'),
    'r18, 8 supports': _r18(f'{PROTOTYPES}.num_supports=8'),
    'r18, halved': _r18(f'{PROTOTYPES}.anchor_selection=uniform'),
    'r18, without KoLeo': _r18('model.head.koleo_weight=0'),
    'r18, KoLeo 0.3': _r18('model.head.koleo_weight=0.3'),
    'r18, teacher temperature 0.02': _r18('model.head.teacher_temperature=0.02'),
    'r18, teacher temperature 0.07': _r18('model.head.teacher_temperature=0.07'),
    'r18, bank of 1,024': _r18(f'{PROTOTYPES}.bank.size=1024'),
    'r18, bank of 8,192': _r18(f'{PROTOTYPES}.bank.size=8192'),
    'r18, fixed anchors': _r18(f'{PROTOTYPES}.fix_anchors_after=16'),
    'r18, residual blocks start at zero': _r18('model.backbone.zero_init_residual=True'),
    'vit': Variant('sop/quickstart.py'),
    'vit, without MIM': _vit('model.target_generator=None', 'model.mim_head=None'),
    'vit, masks of 30 % on all views': _vit(f'{MASKS}.mask_ratio=0.3', f'{MASKS}.mask_ratio_jitter=0.0'),
    'vit, patch prototypes with 4 supports': _vit('model.target_generator.prototypes.num_supports=4'),
}

if __name__ == '__main__':
    arguments = parse_args(TRIALS, 'sop_trials', 'Compare settings of SOP on the photo composites.')
    comparison = Comparison(TRIALS, arguments)
    comparison.train()
    write_report(comparison.report(), arguments.out, 'Trials of SOP on the photo composites', EXPLANATION)
