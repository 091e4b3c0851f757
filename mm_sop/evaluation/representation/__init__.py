"""Protocols on the representation itself: clusters, rank, locality."""
