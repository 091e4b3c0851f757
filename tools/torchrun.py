"""torchrun, which names the process that has failed instead of showing its own traceback."""

import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    """Run torchrun with the arguments of the command line."""
    try:
        run.main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        cause = f'exit code {failure.exitcode}, see its output'
        if failure.exitcode < 0:
            cause = f'killed by signal {-failure.exitcode}, {signal.Signals(-failure.exitcode).name}'
        sys.exit(f'dist_train.sh: rank {rank} (process {failure.pid}) has ended: {cause}')


if __name__ == '__main__':
    main()
