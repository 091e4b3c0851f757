"""Runs :mod:`mm_sop.apps.cli.mine_pairs`, see there or ``--help``."""

from mm_sop.apps.cli.mine_pairs import main

if __name__ == '__main__':
    main()
