"""Readers of the one event stream of a run: the terminal, and result.json."""
