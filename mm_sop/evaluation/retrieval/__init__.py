"""Retrieval, copy detection and image search."""
