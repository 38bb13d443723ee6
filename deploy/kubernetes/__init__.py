"""What runs Isthmus under Kubernetes: the manifests of this folder, rendered.

``values``     what people say, by the names that they know; every fault at once
``variants``   the manifests' options: external sites, the controller's, values
``all_in_one`` one file with bus, issuer, controller and agents, or with a bus of one's own
``bootstrap``  what the first start makes on the control-plane node: authority, bus, credentials
"""
