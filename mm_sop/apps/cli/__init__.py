"""Commands: one module each.

A module parses its arguments before it imports what it works with, so that ``--help`` and wrong arguments answer at
once. ``tools/NAME.py`` runs ``mm_sop.apps.cli.NAME`` from a checkout.
"""
