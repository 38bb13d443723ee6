"""The embedded nats-server: its configuration, its process, and three of them as a cluster."""
