"""Runs :mod:`mm_sop.apps.cli.export`, see there or ``--help``."""

from mm_sop.apps.cli.export import main

if __name__ == '__main__':
    main()
