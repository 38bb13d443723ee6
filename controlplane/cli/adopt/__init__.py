"""``isthmus adopt``: a running cluster's nodes become members with the ranges that they have.

``sources`` makes candidates of what users have (Node objects, flannel's leases, CiliumNode objects,
subnet.env), ``planning`` makes a plan of candidates, ``plan_file`` keeps it, ``command`` holds the verbs. The
first two are pure.
"""
