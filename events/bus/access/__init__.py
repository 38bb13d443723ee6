"""Who may use the bus: credential files and the keys in them.

``nkeys``       Ed25519 keys as NATS spells them
``creds``       reading and writing ``.creds`` files, and the claims in their JWTs
"""
