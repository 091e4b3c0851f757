"""Arguments and preparations that several commands share."""

import argparse


class ConfigOptions(argparse.Action):
    """``KEY=VALUE ...``, read as MMEngine's DictAction reads them, with a message instead of a traceback."""

    def __call__(self, parser, namespace, values, option_string=None):
        from mmengine.config import DictAction

        parse = DictAction(self.option_strings, self.dest, nargs='+')
        try:
            parse(parser, namespace, values, option_string)
        except (ValueError, AssertionError):
            parser.error(f'{option_string}: expected KEY=VALUE ..., got {" ".join(values)}')


def add_config_options(parser: argparse.ArgumentParser, config: str = 'CONFIG') -> None:
    """Add ``--cfg-options``, changes to the config that the argument of this name gives."""
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help=f'changes to {config}'
    )


def add_launcher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')


def add_trust(parser, files: str = 'CHECKPOINT') -> None:
    """Add ``--trust``, which allows code in ``files`` to run, to a parser or a group of one."""
    parser.add_argument('--trust', action='store_true', help=f'allow code in {files} to run')


def add_encoder_arguments(group, sources: str) -> None:
    """Add the choice of an encoder (``sources`` says what it takes), and how images are prepared for it."""
    group.add_argument('--encoder', metavar='SOURCE', help=sources)
    add_network(group)
    group.add_argument('--prefix', help='prefix of the encoder in the state dict; default detected')
    add_trust(group)
    group.add_argument('--crop-size', type=int, help="side of the images; default that of CONFIG's first view")
    group.add_argument('--resize-edge', type=int, help='shorter side before the central crop; default 8/7 of it')
    group.add_argument('--batch-size', type=int, default=256)
    group.add_argument('--num-workers', type=int, default=2)


def add_network(parser, name: str = '--network') -> None:
    """Add the choice between teacher and student."""
    parser.add_argument(name, choices=['teacher', 'student'], default='teacher', help='where there are both')


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """Create a parser that keeps the line breaks of a module's docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def prepare_libraries() -> None:
    """Apply the remedies for other libraries, and build in MMPretrain's scope."""
    from mmengine.registry import init_default_scope

    from mm_sop import compat

    compat.apply()
    init_default_scope('mmpretrain')
