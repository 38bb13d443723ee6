"""A whole cluster in one process under a virtual clock: real decisions, fold, controllers and agents' views;
in memory only the log's disk, the lease's bucket and the wires between. One seed is one history."""
