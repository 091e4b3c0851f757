"""Web page on which the pictures of an index are searched by their likeness."""

from mm_sop.visualization.search_page.server import SearchServer

__all__ = ['SearchServer']
