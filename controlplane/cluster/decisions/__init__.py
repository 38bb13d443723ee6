"""The rules, one module per subject. Each function takes (state, command, now, context),
changes nothing, and returns a Decision or raises the refusal; :mod:`controlplane.cluster.decide` dispatches.
"""
