"""The control plane: from a command to an event, and what is known of the present.

``cluster/``     the pure core: state, fold, rules, invariants; no clock, no network, no disk
``controller/``  what runs around it: the one writer, leadership, the agents' reports
``readmodel/``   the log as temporal tables
``console/``     the HTTP API and the web console
``kubernetes/``  Nodes and members kept in step
``cli/``         the operator's commands
``start``        where the programs begin: an interrupt while they load ends them quietly
``changes``      every stored event, broadcast in this process
"""
