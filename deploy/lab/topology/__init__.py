"""The lab's sites, nodes and addresses as plain data.

``layout``  two sites, their subnets, the nodes of each, the management network

Pure description: nothing in here touches the system.
"""
