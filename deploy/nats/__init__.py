"""The servers' configuration files, and what a site's server needs once it runs.

``cluster.conf``, ``single.conf``, ``site.conf``   shipped as they are, with an example of their variables each
``secure``    the same with accounts, credentials and TLS; ``mirrors``: a site's copies of the streams
"""
