"""What the lab consists of: sites, nodes, addresses. Pure description."""
