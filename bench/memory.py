"""The peak of memory while packages of several sizes are installed: it does not grow with them.

python -m bench.memory [--kind btrfs|directories] [--mb 50 200 800]
"""

import argparse

from bench import disk, system
from bench.update import work

FILES = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=disk.KINDS, default="btrfs")
    parser.add_argument("--mb", type=int, nargs="+", default=[50, 200, 800])
    chosen = parser.parse_args()
    print(f"### memory, {chosen.kind}, packages of {FILES} files\n")
    print("| package, MB | own peak, MB | of it the update's | with children, MB |")
    print("| --- | --- | --- | --- |")
    with disk.disk(chosen.kind) as top:
        (top / "system").mkdir()
        (top / "first" / "assets").mkdir(parents=True)
        first = system.make_package(top / "first", "1.0.1", 1, system.CHANGED)
        for size in chosen.mb:
            system.make_system(top / f"of {size}" / "assets", size * 10**6, FILES)
            package = system.make_package(top / f"of {size}", "1.1.0", 2, system.WHOLE)
            place = top / f"device {size}"
            place.mkdir()
            common = {"top": str(place), "kind": chosen.kind}
            work(work="make_device", system=str(top / "system"), first=str(first), **common)
            cost = work(work="update", package=str(package), version="1.1.0", prefect=False, **common)["cost"]
            grown = cost["own_mb"] - cost["start_mb"]
            print(f"| {size} | {cost['own_mb']:.0f} | {grown:.0f} | {cost['tree_mb']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
