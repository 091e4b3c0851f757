"""Compare all methods on the photo composites: same backbone, images, epochs and seeds; k-NN and training time.

``python tools/benchmarks/methods_on_composites.py --amp`` takes about an hour and a half on two cores, a third less
without the combinations (``--names``). Interrupted, the same command goes on: finished runs are kept. It writes a JSON
file, a readable page and an image.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from composites_runs import Comparison, Variant, parse_args, run_command, write_report
from harness import ROOT, markdown_table

from mm_sop.demo import CompositeSettings
from mm_sop.demo.assets import AssetError, Assets
from mm_sop.demo.classification import PretrainSet
from mm_sop.evaluation.classification.knn_records import format_summary, summarize

EXPLANATION = """\
Pairs for SePP come from its base's encoder of the same seed, in the mode that keeps the number of images; its time is
without the base's training and without mining.
"""


def mine_pairs(base_folder: Path, base_config: Path) -> list[str]:
    """Semantic pairs by the encoder of a finished run."""
    manifest = base_folder / 'pairs/pairs.json'
    if not manifest.is_file():
        checkpoint = (base_folder / 'last_checkpoint').read_text().strip()
        command = [sys.executable, ROOT / 'tools/mine_pairs.py', base_config, checkpoint]
        # Composites hold no duplicates: an upper bound would only reject the surest pairs.
        run_command([*command, '--upper', '1', '--work-dir', manifest.parent], base_folder / 'mining.txt')
    return [f'train_dataloader.dataset.dataset.manifest={manifest}', 'train_dataloader.dataset.dataset.mode=replace']


def load_assets() -> Assets:
    try:
        return Assets.load(ROOT / '.cache/composite-assets')
    except AssetError as error:
        sys.exit(f'{error}. The pairs are judged by it: python tools/prepare_data.py assets')


def judge_pairs(manifests: Iterable[Path], assets: Assets) -> dict[str, dict]:
    """Fractions of pairs with the same class and with the same object, which the generator of the images knows."""
    images = PretrainSet(CompositeSettings(), assets)
    objects = [images.draw_cutout(images.rng(index)) for index in range(len(images))]
    shares = {'same class': [], 'same object': []}
    for manifest in manifests:
        pairs = [(objects[first], objects[second]) for first, second in np.load(manifest.with_suffix('.npz'))['pairs']]
        shares['same class'].append(np.mean([first.label == second.label for first, second in pairs]).item())
        shares['same object'].append(np.mean([first.name == second.name for first, second in pairs]).item())
    return {name: summarize(values) for name, values in shares.items()}


def describe_pairs(report: dict) -> str:
    """A table of :func:`judge_pairs`."""
    rows = [[base, *map(format_summary, fractions.values())] for base, fractions in report['pairs'].items()]
    table = markdown_table(['pairs of', 'same class', 'same object'], rows)
    return f'Mined pairs that show the same, in percent:\n\n{table}\n\n'


METHODS = {
    'SOP': Variant('sop/r18_composites.py'),
    'ReSA': Variant('resa/resa_r18_composites.py'),
    'DINO': Variant('dino/dino_r18_composites.py'),
    'BYOL': Variant('co_ssl/byol_r18_composites.py'),
    'CO-BYOL': Variant('co_ssl/co-byol_r18_composites.py', base='BYOL'),
    'MoCo v2': Variant('mocov2/mocov2_r18_composites.py'),
    'SePP-MoCo v2': Variant('sepp/sepp_mocov2_r18_composites.py', base='MoCo v2', prepare=mine_pairs),
    'SimSiam': Variant('simsiam/simsiam_r18_composites.py'),
    'SePP-SimSiam': Variant('sepp/sepp_simsiam_r18_composites.py', base='SimSiam', prepare=mine_pairs),
    'SePP + SOP': Variant('combinations/sepp_sop_r18_composites.py', base='SOP', prepare=mine_pairs),
    'SePP + ReSA': Variant('combinations/sepp_resa_r18_composites.py', base='ReSA', prepare=mine_pairs),
    'CO + ReSA': Variant('combinations/co_resa_r18_composites.py', base='ReSA'),
}

if __name__ == '__main__':
    arguments = parse_args(METHODS, 'methods_on_composites', 'Compare all methods on the photo composites.')
    bases = dict.fromkeys(METHODS[name].base for name in arguments.names if METHODS[name].prepare)
    assets = load_assets() if bases else None
    comparison = Comparison(METHODS, arguments)
    comparison.train()
    report = comparison.report()
    report['pairs'] = {
        base: judge_pairs([comparison.folder(base, seed) / 'pairs/pairs.json' for seed in arguments.seeds], assets)
        for base in bases
    }
    appendix = describe_pairs(report) if bases else ''
    write_report(report, arguments.out, 'All methods on the photo composites', EXPLANATION, appendix)
