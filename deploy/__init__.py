"""What real machines need: bus configuration, credentials, units, manifests, dashboards; and the laboratory.

``lab/`` is a whole two-site deployment in network namespaces, ``churn/`` recorded joins and leaves of real
clouds.
"""
