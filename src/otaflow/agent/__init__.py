"""The agent of a device: one process that decides, works and answers."""
