"""All measurements, one after the other: `python -m bench` (about 15 minutes), as Markdown on stdout."""

import os
import subprocess
import sys


def main() -> None:
    kinds = ["btrfs", "directories"] if os.geteuid() == 0 else ["directories"]
    runs = [["bench.update", "--kind", kind] for kind in kinds]
    runs += [["bench.slots", "--kind", kind] for kind in kinds]
    runs += [["bench.memory", "--kind", kinds[0]], ["bench.recover"], ["bench.poll"]]
    for module, *options in runs:
        subprocess.run([sys.executable, "-m", module, *options], check=True)
        print(flush=True)


if __name__ == "__main__":
    main()
