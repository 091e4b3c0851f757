"""Runs :mod:`mm_sop.apps.cli.evaluate`, see there or ``--help``."""

from mm_sop.apps.cli.evaluate import main

if __name__ == '__main__':
    main()
