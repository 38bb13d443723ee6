"""``isthmus node import``: files of nodes in, joins out.

``encoding`` makes text of bytes, ``parse`` nodes of text (CSV, JSON), ``kubernetes`` nodes of what
``kubectl get nodes -o json`` prints, ``command`` sends them. All but ``command`` are pure. What cannot be
read is refused by name; what is wrong with one node of a Kubernetes list keeps no other from joining.
"""
