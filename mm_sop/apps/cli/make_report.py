"""Write the report of a run, during or after it: WORK_DIR/report/index.html.

The config that the run has saved in WORK_DIR is read without running it. Give one that needs your own modules with
--config.
"""

import argparse
from pathlib import Path

from mm_sop.apps.cli.arguments import add_trust, command_parser
from mm_sop.utils.failures import report_failures


def parse_args() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('work_dir', type=Path, help='work directory of the run')
    parser.add_argument('--checkpoint', type=Path, help="default: the run's last one")
    parser.add_argument('--seed', type=int, default=0, help='seed for the choice of the images')
    parser.add_argument('--config', help='config of the run; default the one in WORK_DIR, as far as it is safe')
    add_trust(parser, 'the checkpoint')
    return parser.parse_args()


@report_failures('make_report.py', FileNotFoundError)
def main() -> None:
    args = parse_args()

    from mmengine.device import get_device
    from mmengine.registry import init_default_scope

    from mm_sop import compat
    from mm_sop.encoders.checkpoint import load_complete, read_state_dict
    from mm_sop.encoders.safe_config import check_config
    from mm_sop.engine.checkpoints import find_latest
    from mm_sop.report.report import write_report
    from mm_sop.report.run_log import build_model, read_config
    from mm_sop.utils.config import load_config

    compat.apply()
    if args.config:
        config = load_config(args.config)
    else:
        sections = ('model', 'data_preprocessor', 'train_dataloader', 'custom_hooks')
        config = check_config(read_config(args.work_dir), str(args.work_dir), *sections)
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    checkpoint, model = args.checkpoint or find_latest(args.work_dir), None
    if checkpoint is None:
        print(f'no checkpoint in {args.work_dir}: the report is made without images of what the network sees')
    else:
        model = build_model(config, str(checkpoint))
        load_complete(model, read_state_dict(checkpoint, trusted=args.trust), str(checkpoint))
        model.to(get_device())
    print(write_report(args.work_dir, config, model, args.seed))


if __name__ == '__main__':
    main()
