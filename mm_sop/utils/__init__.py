"""Configs, files, tables, processes and their failures."""
