"""Runs :mod:`mm_sop.apps.cli.compare`, see there or ``--help``."""

from mm_sop.apps.cli.compare import main

if __name__ == '__main__':
    main()
