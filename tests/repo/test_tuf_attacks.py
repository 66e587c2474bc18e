"""Attacks on a repository (TUF specification, section 1.5.2), each on a client that has seen the state before."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from otaflow.errors import ConfigError, RepositoryRefused
from otaflow.repo import trust

World = Any


def _old_timestamp(world: World) -> None:
    world.files["timestamp.json"] = world.old["timestamp.json"]


def _old_snapshot(world: World) -> None:
    world.snapshot.signed.version = 1
    world.put_timestamp(world.sign("snapshot"))


def _old_targets(world: World) -> None:
    world.targets.signed.version = 1
    world.publish()


def _dropped_targets(world: World) -> None:
    del world.snapshot.signed.meta["targets.json"]
    world.put_timestamp(world.sign("snapshot"))


def _expired(role: str) -> Callable[[World], None]:
    def attack(world: World) -> None:
        getattr(world, role).signed.expires = world.past
        if role == "root":
            world.root.signed.version += 1
            world.publish_root()
        if role == "targets":
            world.targets.signed.version += 1
        world.publish()

    return attack


def _other_snapshot(world: World) -> None:
    world.snapshot.signed.unrecognized_fields["x"] = 1
    world.publish()
    world.snapshot.signed.version -= 1
    world.snapshot.signed.unrecognized_fields["x"] = 2  # the same length
    world.files[f"{world.snapshot.signed.version}.snapshot.json"] = world.sign("snapshot")


def _other_targets(world: World) -> None:
    world.targets.signed.unrecognized_fields["x"] = 1
    world.add("evil")
    world.publish()
    world.targets.signed.unrecognized_fields["x"] = 2  # the same length
    world.files[f"{world.targets.signed.version}.targets.json"] = world.sign("targets")


def _wrong_key(role: str) -> Callable[[World], None]:
    def attack(world: World) -> None:
        world.signers[role] = [CryptoSigner.generate_ed25519()]
        world.add("evil")
        world.publish()

    return attack


def _key_of_another_role(world: World) -> None:
    world.signers["targets"] = world.signers["snapshot"]
    world.add("evil")
    world.publish()


def _changed_after_signing(world: World) -> None:
    world.publish()
    content = json.loads(world.files["timestamp.json"])
    content["signed"]["version"] += 1
    world.files["timestamp.json"] = json.dumps(content).encode()


def _put(name: str, content: bytes) -> Callable[[World], None]:
    def attack(world: World) -> None:
        world.files[name] = content

    return attack


def _no_snapshot(world: World) -> None:
    world.publish()
    del world.files[f"{world.snapshot.signed.version - 1}.snapshot.json"]


def _skipped_root(world: World) -> None:
    world.root.signed.version += 2
    world.files["2.root.json"] = world.sign("root")


def _root_signed_by(*which: str) -> Callable[[World], None]:
    def attack(world: World) -> None:
        new = CryptoSigner.generate_ed25519()
        old = world.signers["root"][0]
        root = world.root.signed
        root.revoke_key(old.public_key.keyid, "root")
        root.add_key(new.public_key, "root")
        root.version += 1
        world.signers["root"] = [{"old": old, "new": new}[name] for name in which]
        world.publish_root()

    return attack


def _root_of_a_lower_version(world: World) -> None:
    world.files["2.root.json"] = world.files["1.root.json"]


ATTACKS = {
    "rollback of timestamp": (_old_timestamp, "rollback"),
    "rollback of snapshot": (_old_snapshot, "rollback"),
    "rollback of targets": (_old_targets, "rollback"),
    "targets dropped from snapshot": (_dropped_targets, "missing"),
    "freeze: timestamp expired": (_expired("timestamp"), "freeze"),
    "freeze: snapshot expired": (_expired("snapshot"), "freeze"),
    "freeze: targets expired": (_expired("targets"), "freeze"),
    "freeze: root expired": (_expired("root"), "freeze"),
    "mix and match: snapshot": (_other_snapshot, "mix and match"),
    "mix and match: targets": (_other_targets, "mix and match"),
    "wrong key: timestamp": (_wrong_key("timestamp"), "not signed"),
    "wrong key: snapshot": (_wrong_key("snapshot"), "not signed"),
    "wrong key: targets": (_wrong_key("targets"), "not signed"),
    "key of another role": (_key_of_another_role, "not signed"),
    "changed after signing": (_changed_after_signing, "not signed"),
    "endless timestamp": (_put("timestamp.json", b" " * 20_000), "endless"),
    "endless root": (_put("2.root.json", b" " * 600_000), "endless"),
    "no JSON": (_put("timestamp.json", b"<html>log in</html>"), "cannot trust"),
    "deep JSON": (_put("timestamp.json", b"[" * 16_000), "cannot trust"),
    "no snapshot": (_no_snapshot, "cannot fetch"),
    "root: a version skipped": (_skipped_root, "rollback"),
    "root: only the old key signed": (_root_signed_by("old"), "not signed"),
    "root: only the new key signed": (_root_signed_by("new"), "not signed"),
    "root: lower version": (_root_of_a_lower_version, "rollback"),
}


@pytest.mark.parametrize(("attack", "reason"), ATTACKS.values(), ids=ATTACKS)
def test_attack_is_refused_and_what_was_trusted_stays(world: World, attack: Any, reason: str) -> None:
    world.refresh()
    world.old = dict(world.files)
    for path in ("one", "two"):
        world.add(path)
        world.publish()
    world.refresh()
    good = dict(world.files)

    attack(world)
    with pytest.raises(RepositoryRefused, match=reason) as caught:
        world.refresh()

    assert caught.value.hint or "endless" in reason or "fetch" in reason
    # a role that verified before the bad one may be kept (TUF, 5.4 to 5.6): then nothing is trusted until the next good
    # state; else all is as it was
    kept = (world.folder / "timestamp.json").read_bytes() == good["timestamp.json"]
    if kept and attack is not ATTACKS["freeze: root expired"][0]:
        assert world.trusted() == {"one", "two"}
        world.files = good
        world.refresh()
    elif not kept:
        with pytest.raises(RepositoryRefused):
            world.trusted()


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_good_rotation_is_followed(world: World, role: str) -> None:
    world.refresh()
    for number in range(3):
        world.next_root(**{role: [CryptoSigner.generate_ed25519()]})
        world.add(f"after {number}")
        world.publish()
    world.refresh()
    assert len(world.trusted()) == 3


def test_threshold_of_two(world: World) -> None:
    keys = [CryptoSigner.generate_ed25519() for _ in range(3)]
    world.root.signed.roles["targets"].threshold = 2
    world.next_root(targets=keys[:2])
    world.add("both signed")
    world.publish()
    world.refresh()
    world.signers["targets"] = keys[1:]  # the third is not in the root
    world.add("one signed")
    world.publish()
    with pytest.raises(RepositoryRefused, match="1/2"):
        world.refresh()


def test_fast_forward_is_recovered_from_by_new_keys(world: World) -> None:
    world.snapshot.signed.version = world.timestamp.signed.version = 2**31
    world.publish()
    world.refresh()
    world.snapshot.signed.version = world.timestamp.signed.version = 7
    world.publish()
    with pytest.raises(RepositoryRefused, match="rollback"):
        world.refresh()
    world.next_root(
        snapshot=[CryptoSigner.generate_ed25519()],
        timestamp=[CryptoSigner.generate_ed25519()],
    )
    world.add("after recovery")
    world.publish()
    world.refresh()
    assert world.trusted() == {"after recovery"}


def test_same_state_again_is_fine(world: World) -> None:
    world.refresh()
    world.refresh()
    assert world.trusted() == set()


def test_delegated_target_is_found(world: World) -> None:
    world.add("folder/file")
    world.publish()
    found = trust.refresh(world.folder, world.files["1.root.json"], "world:/", world.fetch, "folder/file")
    assert found is not None
    assert found.length == len(b"content")
    assert trust.refresh(world.folder, world.files["1.root.json"], "world:/", world.fetch, "nothing") is None


def test_published_path_has_the_hash_and_is_quoted(world: World) -> None:
    world.refresh()
    path = trust.published_path(world.folder, world.files["1.root.json"], "a b/c+d.nsu", {"sha256": "00ff"})
    assert path == "a%20b/00ff.c%2Bd.nsu"


TAMPERED = {
    "targets": ("targets.json", b"evil"),
    "snapshot": ("snapshot.json", b"evil"),
    "timestamp": ("timestamp.json", b"evil"),
    "empty after a power cut": ("timestamp.json", b""),
}


@pytest.mark.parametrize(("name", "content"), TAMPERED.values(), ids=TAMPERED)
def test_tampering_on_the_device_is_noticed_without_network(world: World, name: str, content: bytes) -> None:
    world.add("one")
    world.publish()
    world.refresh()
    (world.folder / name).write_bytes(content)
    with pytest.raises(RepositoryRefused):
        world.trusted()
    world.refresh()
    assert world.trusted() == {"one"}


def test_targets_of_a_forger_are_not_trusted_from_disk(world: World, tmp_path: Any) -> None:
    world.add("one")
    world.publish()
    world.refresh()
    world.signers["targets"] = [CryptoSigner.generate_ed25519()]
    world.add("evil")
    (world.folder / "targets.json").write_bytes(world.sign("targets"))
    with pytest.raises(RepositoryRefused, match="not signed"):
        world.trusted()


def test_no_metadata_yet(world: World) -> None:
    with pytest.raises(RepositoryRefused, match="none yet"):
        world.trusted()


def test_root_that_is_none(world: World) -> None:
    with pytest.raises(ConfigError, match="root"):
        trust.refresh(world.folder, b"{}", "world:/", world.fetch)
