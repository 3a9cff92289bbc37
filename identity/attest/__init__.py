"""Who somebody is that has no identity yet: processes, pods, machines. Facts are told as SPIRE's selectors."""
