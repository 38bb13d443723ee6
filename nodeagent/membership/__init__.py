"""What this node knows of the cluster: the log followed, folded and remembered. It never touches the kernel.

:mod:`.log_follower` joins, reads, verifies and hands on what changed; :mod:`.view` is the fold into members and
plan, :mod:`.peers` the rule that the newest epoch of a range wins, :mod:`.traffic_table` the CLB pairs,
:mod:`.cache` the node's own memory of the log.
"""
