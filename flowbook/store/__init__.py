"""Where results are: the Store protocol and its kinds, the keys of a run, the artifact codec, and reading results."""
