"""SSH: to a machine, through others if need be, with host keys that are known or the connection is not made."""
