"""Packages on their way to the device: `store` takes them block by block, `logs` keeps what is said about them."""
