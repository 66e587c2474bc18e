"""Where the device's configuration is looked for; apart from `config`, which takes long to load."""

from pathlib import Path

DEFAULT_PATH = Path("/etc/otaflow.toml")
VARIABLE = "OTAFLOW_CONFIG"
