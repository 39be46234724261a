"""One attempt of one task, in a process of its own: inputs, user code, COMMIT. Knows nothing of Jupyter or Kubernetes."""
