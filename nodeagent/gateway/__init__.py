"""What makes a node a gateway: it holds addresses of CLB pairs and sends their connections on to backends.

:mod:`.reconciler` brings rules, addresses and announcements in line with the log; :mod:`.defence`,
:mod:`.graceful_release` and :mod:`.previous_holders` govern who answers for an address meanwhile.
Must never defend an address without the log's last word that it is this node's.
"""
