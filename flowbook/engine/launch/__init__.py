"""Launchers: carry out one attempt somewhere and tell how it ended."""
