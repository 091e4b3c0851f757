"""Runs :mod:`mm_sop.apps.cli.train`, see there or ``--help``."""

from mm_sop.apps.cli.train import main

if __name__ == '__main__':
    main()
