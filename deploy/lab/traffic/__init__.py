"""Pods and the load on the lab: what is sent, counted, replayed and killed while the checks look on.

``pods``, ``prober``, ``measure``    pods attached by CNI plugins, numbered packets between them
``web``, ``clb_flow``, ``arp``       requests through the CLB pair, and who answers for its addresses
``load``, ``churn``, ``kills``       commands, recorded churn, SIGKILL at random points
"""
