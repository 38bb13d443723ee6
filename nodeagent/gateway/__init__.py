"""What makes a node a gateway: it holds addresses of CLB pairs and sends their connections on to backends."""
