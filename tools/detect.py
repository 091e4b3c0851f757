"""Runs :mod:`mm_sop.apps.cli.detect`, see there or ``--help``."""

from mm_sop.apps.cli.detect import main

if __name__ == '__main__':
    main()
