"""The user's answers and the announcements."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from otaflow.errors import ConfigError, OperationNotPermitted
from otaflow.policy.consent import KEPT, Answer, Choice, Consents
from otaflow.policy.offer import Offer
from otaflow.policy.windows import Window, Windows

WINDOWS = Windows([Window("0 2 1 * *", "UTC", 60)])
"""Once a month: longer than an answer counts otherwise."""


def say(consents: Consents, offer: Offer, choice: str, now: datetime, windows: Windows = WINDOWS) -> Answer:
    return consents.answer(
        offer, Choice(choice), by="ann", through="command", now=now, boots=3, days=7, windows=windows
    )


def test_an_answer_is_kept_with_who_how_and_when(consents: Consents, offer: Offer, now: datetime) -> None:
    assert consents.find(offer.content, now) is None
    say(consents, offer, "now", now)
    assert consents.find(offer.content, now) == Answer(
        offer.content, "base", "1.1.0", Choice.NOW, "ann", "command", now, 3, now + timedelta(days=7)
    )
    assert Offer.from_record(offer.record() | {"of a later version": 1}) == offer


LIVES = {
    "now": ("now", timedelta(days=7)),
    "at-next-restart": ("at-next-restart", timedelta(days=7)),
    "in-window, through the next one": ("in-window", timedelta(days=29, hours=15)),
    "not-this-one": ("not-this-one", None),
}


@pytest.mark.parametrize(("choice", "lives"), LIVES.values(), ids=LIVES)
def test_how_long_an_answer_counts(
    consents: Consents, offer: Offer, now: datetime, choice: str, lives: timedelta | None
) -> None:
    answer = say(consents, offer, choice, now)
    assert answer.expires == (lives and now + lives)
    if lives:
        assert answer.holds(now + lives - timedelta(seconds=1))
        assert not answer.holds(now + lives)
    else:
        assert answer.holds(now + timedelta(days=36500))


def test_the_last_answer_counts(consents: Consents, offer: Offer, now: datetime) -> None:
    say(consents, offer, "not-this-one", now)
    say(consents, offer, "now", now + timedelta(hours=1))
    found = consents.find(offer.content, now)
    assert found
    assert found.choice == Choice.NOW


def test_in_window_without_windows_is_refused(consents: Consents, offer: Offer, now: datetime) -> None:
    say(consents, offer, "now", now)
    with pytest.raises(ConfigError, match="no maintenance window") as refused:
        say(consents, offer, "in-window", now, Windows())
    assert "policy.windows" in refused.value.hint
    found = consents.find(offer.content, now)
    assert found
    assert found.choice == Choice.NOW


def test_another_content_of_the_same_version_has_no_answer(consents: Consents, offer: Offer, now: datetime) -> None:
    say(consents, offer, "now", now)
    assert consents.find(replace(offer, content="d2" * 32).content, now) is None


def test_an_answer_can_be_withdrawn_until_it_is_used(consents: Consents, offer: Offer, now: datetime) -> None:
    assert consents.withdraw(offer.content) is None
    say(consents, offer, "now", now)
    assert consents.withdraw(offer.content)
    assert consents.find(offer.content, now) is None
    assert consents.use(offer.content, now) is None
    say(consents, offer, "now", now)
    assert consents.use(offer.content, now)
    with pytest.raises(OperationNotPermitted, match="being activated"):
        consents.withdraw(offer.content)
    found = consents.find(offer.content, now)
    assert found
    assert not found.holds(now)
    assert consents.use(offer.content, now) is None
    consents.forget(offer.content)
    assert consents.find(offer.content, now) is None


def test_an_expired_answer_is_not_used(consents: Consents, offer: Offer, now: datetime) -> None:
    say(consents, offer, "now", now)
    assert consents.use(offer.content, now + timedelta(days=7)) is None


def test_a_clock_set_back_does_not_prolong_an_answer(consents: Consents, offer: Offer, now: datetime) -> None:
    say(consents, offer, "now", now)
    back = now - timedelta(days=365)
    found = consents.find(offer.content, back)
    assert found
    assert found.expires == back + timedelta(days=7)
    assert consents.find(offer.content, back + timedelta(days=1)) == found, "it is seen once, not at every look"


class TestAnnouncements:
    def test_an_offer_is_announced_once(self, consents: Consents, offer: Offer, now: datetime) -> None:
        assert consents.asked(offer.content, now) is None
        assert consents.announce(offer.content, "run-1", now)
        assert not consents.announce(offer.content, "run-2", now + timedelta(days=1))
        asked = consents.asked(offer.content, now)
        assert asked
        assert (asked.run, asked.time) == ("run-1", now)
        assert consents.announce("d2" * 32, "run-2", now), "another content is another offer"

    def test_an_answer_that_holds_does_not_announce_again(
        self, consents: Consents, offer: Offer, now: datetime
    ) -> None:
        consents.announce(offer.content, "run-1", now)
        say(consents, offer, "at-next-restart", now)
        assert not consents.announce(offer.content, "run-2", now + timedelta(days=6))

    @pytest.mark.parametrize("end", ["expired", "withdrawn", "used", "forgotten"])
    def test_it_is_announced_again_when_the_answer_is_gone(
        self, consents: Consents, offer: Offer, now: datetime, end: str
    ) -> None:
        consents.announce(offer.content, "run-1", now)
        say(consents, offer, "now", now)
        later = now + timedelta(days=8 if end == "expired" else 1)
        {
            "expired": lambda: None,
            "withdrawn": lambda: consents.withdraw(offer.content),
            "used": lambda: consents.use(offer.content, later),
            "forgotten": lambda: consents.forget(offer.content),
        }[end]()
        assert consents.asked(offer.content, later) is None
        assert consents.announce(offer.content, "run-2", later)
        assert not consents.announce(offer.content, "run-3", later)

    def test_another_run_can_wait(self, consents: Consents, offer: Offer, now: datetime) -> None:
        consents.announce(offer.content, "run-1", now)
        consents.hand_over(offer.content, "run-2", now + timedelta(days=1))
        asked = consents.asked(offer.content, now)
        assert asked
        assert (asked.run, asked.time) == ("run-2", now)


def test_the_oldest_are_forgotten(consents: Consents, offer: Offer, now: datetime) -> None:
    for number in range(KEPT + 3):
        say(consents, replace(offer, content=f"{number:064x}"), "now", now + timedelta(minutes=number))
    kept = [number for number in range(KEPT + 3) if consents.find(f"{number:064x}", now + timedelta(days=1))]
    assert kept == list(range(3, KEPT + 3))


def test_what_a_later_version_wrote_counts_as_no_answer(consents: Consents, offer: Offer, now: datetime) -> None:
    say(consents, offer, "now", now)
    with consents._store.changing() as content:
        content["answers"][offer.content]["choice"] = "in-spring"
    assert consents.find(offer.content, now) is None
    assert say(consents, offer, "now", now)


def test_who_answered_is_one_line(consents: Consents, offer: Offer, now: datetime) -> None:
    answer = consents.answer(
        offer, Choice.NOW, by="ann\x1b[31m\nroot " * 50, through="interface", now=now, boots=1, days=7, windows=WINDOWS
    )
    assert answer.by.isprintable()
    assert len(answer.by) <= 100
