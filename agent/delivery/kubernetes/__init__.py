"""Kubernetes, through kubectl: a container by `exec`, a node by a Job of its own."""
