"""Namespaces that stand for machines, and what runs on them: buses, controllers, agents."""
