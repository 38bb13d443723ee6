"""The load on the lab: what is sent, counted, replayed and killed while the checks look on.

``prober``, ``measure``              numbered packets between pods
``web``, ``clb_flow``, ``arp``       requests through the CLB pair, and who answers for its addresses
``load``, ``churn``, ``kills``       commands, recorded churn, SIGKILL at random points
"""
