"""Runs :mod:`mm_sop.apps.cli.prepare_data`, see there or ``--help``."""

from mm_sop.apps.cli.prepare_data import main

if __name__ == '__main__':
    main()
