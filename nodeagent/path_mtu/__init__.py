"""How large a packet may be on the way to each peer: measured, and given to its route."""
