"""A real Kubernetes and a real S3 server on this machine, for tests: see docs/cluster.md."""
