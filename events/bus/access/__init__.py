"""Who may use the bus: credential files, the keys in them, and how a machine comes by its own.

``nkeys``       Ed25519 keys as NATS spells them
``creds``       reading and writing ``.creds`` files, and the claims in their JWTs
``enrolment``   a join token is exchanged for credentials, which renew themselves
"""
