"""The embedded nats-server: its configuration, its process, and three of them as a cluster.

``config``    the settings that every server of ours has, as text
``process``   one server as a child: started, watched, restarted, ended with its owner
``cluster``   three of them that form one cluster, for tests and the lab
"""
