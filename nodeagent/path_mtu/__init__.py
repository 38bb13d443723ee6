"""How large a packet may be on the way to each peer: measured (:mod:`.probe`), tracked (:mod:`.tracker`).

The finding goes to the peer's route. Silence changes nothing.
"""
