"""Reaching the bus: connections, credentials, the client of the command service, the embedded server.

``connection``, ``nats_fastpath``   one way to connect; what nats-py cannot do, isolated, with the reasons
``client``, ``retry``               commands and queries, sent and understood; how retries wait
``enrolment``                       a join token is exchanged for credentials, which renew themselves
``access/``, ``server/``            credentials; nats-server started by us
"""
