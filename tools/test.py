"""Runs :mod:`mm_sop.apps.cli.test`, see there or ``--help``."""

from mm_sop.apps.cli.test import main

if __name__ == '__main__':
    main()
