"""The client's end of the authority: a node's own identity, and those of the workloads behind it."""
