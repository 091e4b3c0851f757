"""Runs :mod:`mm_sop.apps.cli.search_images`, see there or ``--help``."""

from mm_sop.apps.cli.search_images import main

if __name__ == '__main__':
    main()
