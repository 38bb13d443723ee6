"""The node's nftables table: its wanted form, kept in step, and who else touches it."""
