"""``isthmus mesh``: what the agents measured of each other, and the verdict."""
