"""What every role's command line shares: options, tables, configuration files.

``options``         bus options, output for people and machines, running async code
``config``          one TOML file, then the environment, then flags
``config_command``  ``isthmus config``
"""
