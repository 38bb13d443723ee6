"""What events do to the state, by subject; the table of all of them is :mod:`controlplane.cluster.evolve`."""
