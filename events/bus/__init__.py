"""Reaching the bus: connections, credentials, the client of the command service, the embedded server.

``connection``      the options that every connection of ours needs
``client``          commands and queries, sent and understood
``nats_fastpath``   what nats-py cannot do, isolated, with the reasons
``access/``         credential files, keys, enrolment by token
``server/``         nats-server started by us: alone, or three of them
"""
