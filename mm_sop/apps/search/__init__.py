"""Web page on which the images of an index are searched by their similarity."""

from mm_sop.apps.search.server import SearchServer

__all__ = ['SearchServer']
