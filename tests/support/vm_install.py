#!/usr/bin/python3
"""Runs in a virtual machine: install a file as `otaflow update FILE` does, but tell no Prefect server.

An emulated processor takes half a minute to load Prefect, and otaflow goes without where its server is away.
"""

import sys
from pathlib import Path

from otaflow import work
from otaflow.asked import Asked
from otaflow.errors import Restarting

try:
    with work.working(work.load_device(None), prefect=False) as (ucm, _):
        for version in work.install_new(ucm, Asked(file=Path(sys.argv[1]))):
            print(f"installed {version}")
except Restarting:
    print("restarting")
