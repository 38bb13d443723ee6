"""Kubernetes Nodes and members of the cluster, kept in step: ``isthmus controller --kubernetes``.

Kubernetes is a client of the log, never a second source of truth: a Node's deletion asks, the log decides; a
Node's podCIDR and conditions say what the log says.

``objects``  what is read of a Node, and what is written to it
``desired``  Node + member → what is to be written; pure
``api``      the port to the API server, and its implementation on kubernetes_asyncio
``port``     the port to the controller
``flannel_nodes``  Nodes that another network serves, and what is wrong with them; pure
``bridge``   the loop: list, watch, follow the log, write

Must never give a range: that is :mod:`controlplane.cluster`'s. Agents have no access to the API server.
"""
