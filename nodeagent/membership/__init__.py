"""What this node knows of the cluster: the log followed, folded and remembered.

``log_follower``  joins, reads, verifies, remembers, and hands on what changed
``view``          the fold of the log into peers, the own membership and the plan
``peers``         other members, and the rule that the newest epoch of a range wins
``cache``         the node's own memory of the log
"""
