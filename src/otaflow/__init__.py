"""otaflow: signed A/B updates for Linux devices, every step a Prefect task with its undo."""

__version__ = "0.1.0"
