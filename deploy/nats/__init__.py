"""The servers' configuration files, and what a site's server needs once it runs."""
