"""The question of every boot, which is nearly always answered with no: is there anything to recover?

It is asked with the standard library alone, since the boot waits for it: reading the configuration with pydantic and
building the command line take five times as long as the answer. Where it is not a plain no, `otaflow recover` goes on
as any command does.
"""

import os
import tomllib
from pathlib import Path

from otaflow.errors import OtaflowError
from otaflow.journal import Journal
from otaflow.platform.boots import Boots

DEFAULT_PATH = Path("/etc/otaflow.toml")
VARIABLE = "OTAFLOW_CONFIG"


def is_idle() -> bool:
    """Count this start of the device, and say whether it is Idle. False, too, where it cannot be told this way."""
    path = Path(os.environ.get(VARIABLE) or DEFAULT_PATH)
    try:
        values = tomllib.loads(path.read_text())
        nvm = path.parent / values["device"]["root"] / values.get("nvm", {}).get("path", "nvm")
        if not nvm.is_dir():
            return False
        boots = Boots(nvm / "boots.json")
        if Journal(nvm / "journal", boots.count).state != "Idle":
            return False
        boots.note_boot()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OtaflowError):
        return False
    return True
