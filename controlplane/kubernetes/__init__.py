"""Kubernetes Nodes and members of the cluster, kept in step: ``isthmus controller --kubernetes``.

Kubernetes is a client of the log, never a second source of truth: a Node's deletion asks, the log decides; a
Node's podCIDR and conditions say what the log says.

``objects``  what is read of a Node, and what is written to it
``desired``  Node + member → what is to be written; pure
``api``      the port to the API server, and its implementation on kubernetes_asyncio
``port``     the port to the controller
``flannel_nodes``  Nodes that another network serves, and what is wrong with them; pure
``bridge``   the loop: list, watch, follow the log, write
``beside``   the same as a process of its own, one at a time by a ``lease``
``members``  what a controller knows, as the bridge sees it
``node_objects``  a Node as an import reads it
``pods`` ``endpoints`` ``services``  pods with old addresses; backends by EndpointSlices and annotated Services
``tokens``   ServiceAccount tokens reviewed

Must never give a range: that is :mod:`controlplane.cluster`'s. Agents have no access to the API server.
"""
