"""Programs: the command line and the search page."""
