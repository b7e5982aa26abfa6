"""Figures, interactive views, and the display of source code."""
