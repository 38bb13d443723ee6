"""Verbs of `isthmus agent` that are one command each; :mod:`nodeagent.cli` puts them together."""
