"""Time SOP after the backbone against the released procedure: heads, memory banks, both losses, backward, enqueue.

``python tools/benchmarks/sop_step.py`` takes a few minutes on two cores. It writes a JSON file and a readable page
beside it.
"""

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

# The profiler announces every start and stop otherwise.
os.environ.setdefault('KINETO_LOG_LEVEL', '9')
# A thread that waits for another one shall sleep: spinning would count as CPU time.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import numpy as np
import torch
from harness import ROOT, markdown_table, processor_name, take_turns, write_report
from mmengine import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS, TRANSFORMS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn.functional import normalize

import mm_sop  # noqa: F401

sys.path.insert(0, str(ROOT / 'tests'))
from reference.sop_released import ReleasedBank, ReleasedHead, ReleasedStep

MODEL_CONFIG = ROOT / 'configs/_base_/models/sop_vit.py'
GRID, LOCAL_GRID = (14, 14), (6, 6)
# The stand-in for the backbone tells the two kinds of views by the width of the images.
GLOBAL_WIDTH, LOCAL_WIDTH = 2, 1
PAPER_ANCHORS = 4096

METHOD = """\
# SOP after the backbone, against the released procedure

Everything of a training step that follows the backbones: the projection heads of student and teacher, the selection
of anchors and supports, both losses, the backward pass down to the backbone's tokens, and the writes into the banks.

*Released* is the procedure of the authors' code, written out in `tests/reference/sop_released.py`: banks of columns
that are cloned in every step, gathered candidates, a dense contribution matrix, heads on every token, a double loop
over the views; its synchronizations with the host are left out. *MM-SOP* is `SOP.loss` on a stand-in for the backbone
that returns given tokens. Both have the same tokens, masks, head weights and bank contents. Masks are the block masks
of the iBOT recipe: of each view, nothing or 10 to 50 % is masked, 15 % on average.

The parts overlap, so they do not add up to the total:

* *selection*: prototypes of both banks;
* *[CLS] loss*: from embeddings of all views to their gradients, for given prototypes;
* *patch part*: from patch embeddings to their gradients, with the selection; all tokens against the masked ones;
* *head*: from tokens to embeddings and back, for the tokens that each side sends through it.

The two sides take turns in one process. Times are medians (quartiles in brackets); a ratio is the median over the
turns of released time / MM-SOP time. CPU time adds up the threads of the process and depends little on what else a
shared machine is doing; elapsed time depends on it, the more the smaller the operations are. Peak memory is the most
that a part holds at once beyond its parameters and inputs: the running sum of all allocations and releases that
PyTorch's profiler records on a CPU, the allocator's own maximum on CUDA.
"""


FOOTNOTE = """\
Made by `python tools/benchmarks/sop_step.py`; `--help` lists the options. The same figures are in the JSON file beside
this page.
"""


class Part(NamedTuple):
    """A piece of work, done both ways."""

    name: str
    released: Callable[[], object]
    mm_sop: Callable[[], object]


class TokenBackbone(nn.Module):
    """Stands in for a vision transformer and returns given tokens, global or local ones."""

    accepts_mask = True

    def __init__(self, tokens: dict[int, Tensor]) -> None:
        super().__init__()
        self.tokens = nn.ParameterDict({str(width): value for width, value in tokens.items()})

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.tokens[str(images.shape[-1])]


class FixedPrototypes(nn.Module):
    """Gives the same prototypes in every step."""

    def __init__(self, sampler: nn.Module) -> None:
        super().__init__()
        self.prototypes = sampler()

    def forward(self) -> object:
        return self.prototypes


class Problem:
    """One training step: model, released procedure, views and masks."""

    def __init__(self, args: argparse.Namespace, **prototypes) -> None:
        self.batch, self.num_views = args.batch, 2 + args.local_crops
        config = Config.fromfile(MODEL_CONFIG).model
        config.head.prototypes.update(prototypes)
        config.head.prototypes.bank.size = args.bank
        config.target_generator.prototypes.bank.size = args.patch_bank
        width, local_images = config.neck.in_channels, args.local_crops * args.batch
        tokens = {GLOBAL_WIDTH: torch.randn(2 * args.batch, 1 + GRID[0] * GRID[1], width)}
        if local_images:
            tokens[LOCAL_WIDTH] = torch.randn(local_images, 1 + LOCAL_GRID[0] * LOCAL_GRID[1], width)
        config.backbone = TokenBackbone(tokens)
        self.model = MODELS.build(config)
        self.model.init_weights()
        self.model.to(args.device)
        self.released = build_released(self.model).to(args.device)
        self.masks = draw_masks(args.batch)
        widths = [GLOBAL_WIDTH] * 2 + [LOCAL_WIDTH] * args.local_crops
        self.images = [torch.empty(args.batch, 1, 1, width, device=args.device) for width in widths]
        self.mask = self.masks.transpose(0, 1).flatten(2).flatten(0, 1).to(args.device)
        self.masked = self.mask.flatten().nonzero().squeeze(1)

    @property
    def tokens(self) -> tuple[Tensor, Tensor | None]:
        """Global and local tokens of the student, which collect gradients."""
        tokens = self.model.backbone.tokens
        return tokens[str(GLOBAL_WIDTH)], tokens[str(LOCAL_WIDTH)] if self.num_views > 2 else None

    def draw_embeddings(self, *shape: int) -> Tensor:
        width = self.model.head.prototypes.bank.embeddings.shape[1]
        return normalize(torch.randn(*shape, width, device=self.mask.device), dim=-1)

    def forget_gradients(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self.released.zero_grad(set_to_none=True)


def build_released(model: nn.Module) -> ReleasedStep:
    """The released procedure with the heads, the banks and the settings of a model."""
    heads = []
    for neck in (model.neck, model.teacher['neck']):
        heads.append(ReleasedHead(neck.layers[0].in_features))
        heads[-1].load_state_dict(neck.layers.state_dict())
    banks = []
    for sampler in (model.head.prototypes, model.target_generator.prototypes):
        bank = ReleasedBank(
            *sampler.bank.embeddings.shape,
            num_anchors=sampler.num_anchors,
            num_supports=sampler.num_supports,
            num_tasks=sampler.num_tasks,
            anchor_weight=sampler.anchor_weight,
            low_energy=sampler.anchor_selection != 'all',
        )
        bank.columns.copy_(sampler.bank.embeddings.T)
        banks.append(bank)
    return ReleasedStep(*heads, *banks, model.head.student_temperature, model.head.teacher_temperature)


def draw_masks(batch: int, num_batches: int = 101) -> Tensor:
    """Masks of the iBOT recipe, (B, 2, h, w); the batch with the median masked fraction out of many."""
    generator = TRANSFORMS.build({'type': 'BlockMaskGenerator', 'grid': GRID})
    batches = [np.stack([generator.draw_masks() for _ in range(batch)]) for _ in range(num_batches)]
    return torch.from_numpy(sorted(batches, key=np.mean)[num_batches // 2])


def selection(problem: Problem) -> Part:
    samplers = problem.model.head.prototypes, problem.model.target_generator.prototypes
    banks = problem.released.cls_bank, problem.released.patch_bank
    return Part('selection', lambda: [bank.draw() for bank in banks], lambda: [sampler() for sampler in samplers])


def cls_selection(problem: Problem) -> Part:
    return Part('selection', problem.released.cls_bank.draw, problem.model.head.prototypes)


def cls_loss(problem: Problem) -> Part:
    student = problem.draw_embeddings(problem.num_views, problem.batch).requires_grad_()
    teacher = problem.draw_embeddings(2, problem.batch)
    tasks, head = problem.released.cls_bank.draw(), copy.deepcopy(problem.model.head)
    head.prototypes = FixedPrototypes(head.prototypes)

    def released():
        loss = problem.released.cls_part(student.flatten(0, 1), teacher.flatten(0, 1), tasks)
        torch.autograd.grad(loss, student)

    def ours():
        torch.autograd.grad(head.loss(student, teacher)['loss_cls'], student)

    return Part('[CLS] loss', released, ours)


def patch_part(problem: Problem) -> Part:
    student = problem.draw_embeddings(*problem.mask.shape).requires_grad_()
    teacher = problem.draw_embeddings(*problem.mask.shape)
    masked_student = student.detach()[problem.mask].requires_grad_()
    masked_teacher = teacher[problem.mask]
    weights = 1 / (len(problem.mask) * problem.mask.sum(1, keepdim=True).clamp(min=1))
    weights = weights.expand_as(problem.mask)[problem.mask]

    def released():
        torch.autograd.grad(problem.released.patch_part(student, teacher, problem.mask), student)

    def ours():
        targets = problem.model.target_generator(masked_teacher)
        loss = problem.model.mim_head.loss(masked_student, targets, weights)['loss_mim']
        torch.autograd.grad(loss, masked_student)

    return Part('patch part', released, ours)


def head(problem: Problem) -> Part:
    tokens, local_tokens = problem.tokens
    neck, teacher_neck = problem.model.neck, problem.model.teacher['neck']

    def released():
        cls, patches, _, _ = problem.released.embed(tokens, local_tokens, tokens.detach())
        (cls.sum() + (patches * problem.mask.unsqueeze(-1)).sum()).backward()

    def ours():
        cls, masked = tokens[:, 0], tokens[:, 1:].flatten(0, 1)[problem.masked]
        with torch.no_grad():
            teacher_neck(cls)
            # As many tokens more as go to the patch bank.
            teacher_neck(torch.cat([masked, cls[problem.batch :]]))
        local_cls = [] if local_tokens is None else [local_tokens[:, 0]]
        (neck(torch.cat([cls, *local_cls])).sum() + neck(masked).sum()).backward()

    return Part('head', released, ours)


def total(problem: Problem) -> Part:
    tokens, local_tokens = problem.tokens
    samples = [DataSample(mask=mask) for mask in problem.masks]

    def released():
        sum(problem.released(tokens, local_tokens, tokens.detach(), problem.mask)).backward()

    def ours():
        losses = problem.model.loss(problem.images, samples)
        (losses['loss_cls'] + losses['loss_mim']).backward()

    return Part('total', released, ours)


def measure(parts: list[Part], problem: Problem, args: argparse.Namespace) -> dict[str, dict]:
    """Times and peak memory of the parts, released and ours in turns."""
    results = {}
    for part in parts:
        print(part.name, file=sys.stderr)
        sides = {'released': partial(call, part.released, args), 'mm_sop': partial(call, part.mm_sop, args)}
        times = {side: [] for side in sides}
        for timed in take_turns(sides, args.repeats, warm_up=1, prepare=problem.forget_gradients):
            times[timed.name].append((1e3 * timed.seconds, 1e3 * timed.cpu_seconds))
        results[part.name] = summarize(times)
        for side, function in sides.items():
            problem.forget_gradients()
            results[part.name][side]['peak_mib'] = round(peak_memory(function, args.device) / 2**20, 1)
    problem.forget_gradients()
    return results


def call(function: Callable[[], object], args: argparse.Namespace) -> None:
    kind, is_mixed = torch.device(args.device).type, args.precision == 'bf16'
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=is_mixed, cache_enabled=False):
        function()


def peak_memory(function: Callable[[], object], device: str) -> int:
    """Most bytes that a call holds at once beyond what was allocated before it."""
    if torch.device(device).type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f'{folder}/trace.json')
        events = json.loads(Path(folder, 'trace.json').read_text())['traceEvents']
    changes = sorted((event for event in events if event.get('name') == '[memory]'), key=itemgetter('ts'))
    return int(np.cumsum([change['args']['Bytes'] for change in changes]).max())


def summarize(times: dict[str, list[tuple[float, float]]]) -> dict[str, dict]:
    """Times of both sides and their ratios, turn by turn."""
    result = {side: {} for side in times} | {'ratio': {}}
    for index, clock in enumerate(('ms', 'cpu_ms')):
        values = {side: [turn[index] for turn in turns] for side, turns in times.items()}
        for side, turns in values.items():
            result[side][clock] = spread(turns)
        ratios = [old / new for old, new in zip(values['released'], values['mm_sop'], strict=True)]
        result['ratio'][clock] = spread(ratios)
    return result


def spread(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method='inclusive')
    return {'median': round(median, 2), 'quartiles': [round(low, 2), round(high, 2)]}


def describe_machine(args: argparse.Namespace) -> dict[str, object]:
    device = torch.device(args.device)
    return {
        'torch': torch.__version__,
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu',
        'cpu': processor_name(),
        'threads': torch.get_num_threads(),
        'precision': args.precision,
        'load_before': round(os.getloadavg()[0], 1),
    }


def table(results: dict[str, dict]) -> str:
    """Markdown table of one preset."""
    titles = ['part', 'released, ms', 'MM-SOP, ms', 'times faster']
    titles += ['released, CPU ms', 'MM-SOP, CPU ms', 'times less CPU']
    titles += ['released, MiB', 'MM-SOP, MiB', 'times less memory']
    rows = []
    for name, result in results.items():
        times = [show(result[side][clock]) for clock in ('ms', 'cpu_ms') for side in ('released', 'mm_sop', 'ratio')]
        old, new = (result[side]['peak_mib'] for side in ('released', 'mm_sop'))
        rows.append([name, *times, f'{old:,.1f}', f'{new:,.1f}', f'{old / max(new, 0.1):.1f}'])
    return markdown_table(titles, rows)


def show(values: dict[str, float]) -> str:
    low, high = values['quartiles']
    digits = 0 if values['median'] >= 100 else 1
    return f'{values["median"]:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})'


def figures(report: dict[str, dict]) -> str:
    """What was measured where, and the tables, as Markdown."""
    machine, settings = report['machine'], report['settings']
    where = machine['cpu'] if machine['device'] == 'cpu' else f'{machine["device"]}, {machine["cpu"]}'
    parts = [
        f'Batch {settings["batch"]}, 2 global and {settings["local_crops"]} local crops, ViT-S/16 tokens, bank '
        f'{settings["bank"]:,}, patch bank {settings["patch_bank"]:,}, {settings["masked_fraction"]:.1%} of the '
        f'patches masked, {settings["repeats"]} turns. PyTorch {machine["torch"]}, {machine["precision"]}, {where}, '
        f'{machine["threads"]} threads; load average before the run {machine["load_before"]}.'
    ]
    for title, results in report['results'].items():
        parts += [f'## {title}', table(results)]
    return '\n\n'.join(parts) + '\n'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--batch', type=int, default=32, help='images; must divide both banks')
    parser.add_argument('--bank', type=int, default=65536, help='rows of the [CLS] bank')
    parser.add_argument('--patch-bank', type=int, default=8192, help='rows of the patch bank')
    parser.add_argument('--local-crops', type=int, default=10, help='local crops of an image')
    parser.add_argument('--repeats', type=int, default=5, help='turns, after one that is not counted; at least 2')
    parser.add_argument('--no-paper', action='store_true', help=f'leave out the preset of {PAPER_ANCHORS} anchors')
    parser.add_argument('--precision', choices=['fp32', 'bf16'], default='fp32', help='bf16: under autocast')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=2, help='of PyTorch on the CPU')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/benchmarks/sop_step.json')
    args = parser.parse_args()
    if args.bank % args.batch or args.patch_bank % args.batch:
        parser.error(f'the released banks need a size that --batch {args.batch} divides')
    if args.repeats < 2:
        parser.error(f'--repeats {args.repeats}: quartiles need at least 2 turns')
    if args.out.suffix != '.json':
        parser.error(f'--out {args.out}: expected a name that ends with .json')
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    init_default_scope('mmpretrain')
    MMLogger.get_instance('sop_step', log_level='ERROR')
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    machine = describe_machine(args)
    problem = Problem(args)
    parts = [make(problem) for make in (selection, cls_loss, patch_part, head, total)]
    title = 'Released preset: 4 tasks of 64 anchors, halved, 8 supports; 512 patch anchors'
    results = {title: measure(parts, problem, args)}
    if not args.no_paper:
        paper = Problem(args, num_anchors=PAPER_ANCHORS, num_tasks=1, anchor_selection='all')
        title = f'Preset of the paper, [CLS] only: 1 task of {PAPER_ANCHORS} anchors, 8 supports'
        results[title] = measure([cls_selection(paper), cls_loss(paper)], paper, args)
    settings = {name: getattr(args, name) for name in ('batch', 'local_crops', 'bank', 'patch_bank', 'repeats', 'seed')}
    settings['masked_fraction'] = round(problem.masks.float().mean().item(), 4)
    report = {'machine': machine, 'settings': settings, 'results': results}
    write_report(report, args.out, '\n'.join([METHOD, figures(report), FOOTNOTE]))


if __name__ == '__main__':
    main()
