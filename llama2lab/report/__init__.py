"""A finished run as figures, plots and one page."""
