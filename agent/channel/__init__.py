"""The control channel between a controller and the agent on a host: standard input and standard output of the agent."""
