"""Reads columns of any name and shape: names, values, turns, the layout of a source, and its rows."""
