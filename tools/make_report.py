"""Runs :mod:`mm_sop.apps.cli.make_report`, see there or ``--help``."""

from mm_sop.apps.cli.make_report import main

if __name__ == '__main__':
    main()
