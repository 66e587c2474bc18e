"""Which application packages bring an application from one version to another, in order. Rules without I/O.

* an update applies to exactly the version it names, and brings a higher one; a package that names none installs the
  application where it is not there: a chain is one installation, or none, and then updates;
* of all chains to a version the one is taken with the fewest packages that are to be avoided (they failed here, or the
  user refused them), and of those the shortest;
* where there is none, the refusal names the link that is missing.
"""

from collections.abc import Collection, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

from otaflow.errors import IncompatibleDelta, OldVersion
from otaflow.package.versions import find_exact, newer, read_version, same
from otaflow.repo.choice import Target


def choose_updates(
    targets: Iterable[Target], installed: Mapping[str, str], model: str, avoid: Collection[str] = ()
) -> list[Target]:
    """The updates of the applications `installed` (name: version) on a device of `model`, in their order.

    Of each application those that lead to the highest version that can be reached; an application comes after those
    that its updates depend on. `avoid`: SHA-256 of packages that are gone around where there is a way.
    """
    known = list(targets)
    chains = {
        name: _highest(_find_ways(_fitting(_packages_of(known, name), model), version, avoid))
        for name, version in sorted(installed.items())
    }
    return [target for name in _in_order(chains) for target in chains[name]]


def find_chain(
    targets: Iterable[Target],
    *,
    name: str,
    installed: str | None,
    to: str | None,
    model: str,
    avoid: Collection[str] = (),
) -> list[Target]:
    """What must be installed, in order, to bring the application `name` from `installed` (None: not there) to `to`.

    `to` None: the highest version that can be reached. Empty where it is there already. Raises IncompatibleDelta, which
    names the missing link; OldVersion where `to` is lower than `installed`.
    """
    if installed is not None and to is not None and not newer(to, installed):
        if same(to, installed):
            return []
        raise OldVersion(
            f"cannot update {name} to {to}: {installed} is installed, and an update must be higher",
            hint="remove it first, or publish what it had as a higher version",
        )
    packages = _packages_of(targets, name)
    ways = _find_ways(_fitting(packages, model), installed, avoid)
    if to is None and (ways or installed is not None):
        return _highest(ways)
    if to is not None and (way := ways.get(_key(to))):
        return way
    verb = f"install {name} {to or ''}".rstrip() if installed is None else f"update {name} to {to}"
    raise IncompatibleDelta(
        f"cannot {verb}: {_say_why(packages, ways, name, installed, to, model)}",
        hint="publish the package that is missing, or ask for another version",
    )


# --- the ways -----------------------------------------------------------------------------------------------------


def _packages_of(targets: Iterable[Target], name: str) -> list[Target]:
    """The packages of the application `name`, the lowest versions first; what leads down is left out."""
    packages = [
        target for target in targets if (target.kind, target.name) == ("application", name) and _leads_up(target)
    ]
    return sorted(packages, key=lambda target: (read_version(target.version), target.path))


def _leads_up(target: Target) -> bool:
    base = _base(target)
    return target.applies_to.versions is None or (base is not None and newer(target.version, base))


def _fitting(packages: Iterable[Target], model: str) -> list[Target]:
    """Those of them that are for `model`."""
    return [one for one in packages if not one.applies_to.models or model in one.applies_to.models]


def _find_ways(packages: list[Target], installed: str | None, avoid: Collection[str]) -> dict[str, list[Target]]:
    """The best chain to each version that can be reached from `installed`. `packages` are sorted."""

    def rank(way: list[Target]) -> tuple[int, int]:
        return sum(target.hashes.get("sha256") in avoid for target in way), len(way)

    ways: dict[str, list[Target]] = {} if installed is None else {_key(installed): []}
    for target in packages:
        base = _base(target)
        before = [] if base is None and installed is None else ways.get(_key(base)) if base else None
        if before is None:
            continue
        way, there = [*before, target], ways.get(_key(target.version))
        if there is None or rank(way) < rank(there):
            ways[_key(target.version)] = way
    return {version: way for version, way in ways.items() if way}


def _highest(ways: Mapping[str, list[Target]]) -> list[Target]:
    """The way to the highest version; none where there is no way."""
    return max(ways.values(), key=lambda way: read_version(way[-1].version), default=[])


def _in_order(chains: Mapping[str, list[Target]]) -> list[str]:
    """The names, each after those that it depends on; by the alphabet where they depend on each other in a circle."""
    needs = {
        name: sorted(
            {str(need.get("name")) for target in chain for need in target.dependencies} & chains.keys() - {name}
        )
        for name, chain in chains.items()
    }
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError:
        return sorted(chains)


def _base(target: Target) -> str | None:
    """The one version that the package updates; None where it names none, or several."""
    return find_exact(target.applies_to.versions) if target.applies_to.versions else None


def _key(version: str) -> str:
    """The same for versions that are equally high."""
    return str(read_version(version).replace(build=None))


# --- the missing link ---------------------------------------------------------------------------------------------


def _say_why(
    packages: list[Target],
    ways: Mapping[str, list[Target]],
    name: str,
    installed: str | None,
    to: str | None,
    model: str,
) -> str:
    """What ends the way to `to`, and what would have to be there to go on."""
    if not packages:
        return "the repository has no application of that name"
    last = _last_before(to, installed, ways)
    exits = [one.version for one in _fitting(packages, model) if last and (base := _base(one)) and same(base, last)]
    if not last:
        end = f"nothing in the repository installs {name}"
    elif exits:
        end = f"what updates {last} brings {', '.join(exits)}"
    else:
        end = f"nothing in the repository updates {last}"
    return f"{end}; {_say_missing(to or packages[0].version, packages, installed, model)}"


def _last_before(to: str | None, installed: str | None, ways: Mapping[str, list[Target]]) -> str:
    """The highest version below `to` that can be reached; empty where there is none."""
    reached = [way[-1].version for way in ways.values() if to is None or newer(to, way[-1].version)]
    return max(reached, key=read_version, default=installed or "")


def _say_missing(to: str, packages: list[Target], installed: str | None, model: str) -> str:
    """Go back from `to` as far as packages lead, and say what would have to be there."""
    brings: dict[str, Target] = {}
    for target in _fitting(packages, model):  # of several that bring a version the one that asks for the highest
        former = brings.get(_key(target.version))
        if former is None or _rank(_base(target)) > _rank(_base(former)):
            brings[_key(target.version)] = target
    missing, asks = to, None
    while one := brings.get(_key(missing)):
        base, asks = _base(one), one.version
        if base is None:
            return f"{asks} is there only as a package that installs it anew, and {installed} is installed"
        if installed is not None and newer(installed, base):
            return f"{asks} applies to {base}, and {installed} is installed"
        missing = base
    models = [model for one in packages if same(one.version, missing) for model in one.applies_to.models]
    gap = f"no package brings {missing}"
    if models:
        gap = f"{missing} is there for {', '.join(dict.fromkeys(models))} only, and this device is a {model}"
    return f"{asks} applies to {missing} and {gap}" if asks else gap


def _rank(version: str | None) -> tuple[bool, object]:
    return (True, read_version(version)) if version else (False, None)
