"""`isthmus churn`: node churn recorded from real clouds, replayed through the real command path.

``trace``   recordings → joins and leaves of named nodes (pure)
``drive``, ``replay``    sends them, and simulates the agents of those nodes
``ledger``, ``verify``   reads the log afterwards: no two owners of one range, an unbroken hash chain
"""
