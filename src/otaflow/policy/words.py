"""The texts of notices and of messages to applications, in words that a person understands."""

from otaflow.policy.decide import Verdict
from otaflow.policy.offer import Offer

_FOLLOWS = {
    Verdict.INSTALL: "It will be installed now.",
    Verdict.ASK: "It is installed when you say so.",
    Verdict.WAIT: "It is installed later.",
    Verdict.REFUSE: "It is not installed: you refused it.",
}
_UNITS = ("bytes", "kB", "MB", "GB")


def available(offer: Offer, verdict: Verdict) -> str:
    """An update can be installed; `verdict`: what a poll does with it now."""
    urgent = "A priority update" if offer.priority else "An update"
    size = f" ({in_bytes(offer.bytes)} to download)" if offer.bytes else ""
    about = f" {_sentence(offer.description)}" if offer.description.strip() else ""
    loss = f" {offer.loss()}" if offer.irreversible else ""
    return f"{urgent} is available: {offer.title()}{size}.{about}{loss} {_FOLLOWS[verdict]}"


def installing(offer: Offer) -> str:
    """An update begins."""
    end = "it is closed for the last of it" if offer.kind == "application" else "it may restart at the end"
    return f"{offer.title()} is being installed. The device can be used meanwhile; {end}."


def done(name: str, version: str) -> str:
    """An update is in place."""
    return f"{name} {version} is installed and works."


def removed(name: str, version: str) -> str:
    """An application is not there any more."""
    return f"{name} {version} was removed; its data stays."


def failed(name: str, version: str, why: str) -> str:
    """An update failed before anything of the running system was changed."""
    return f"{name} {version} could not be installed: {_sentence(why)} The device runs on as before."


def rolled_back(name: str, version: str, why: str, *, runs: str = "") -> str:
    """An update was in place and is not any more; `runs` is the version that runs now."""
    now = f" Version {runs} runs." if runs else ""
    return f"{name} {version} {'was' if runs else 'is being'} taken back: {_sentence(why)}{now}"


def fell_back(why: str) -> str:
    """The boot loader started another slot than it was told to."""
    return f"The device did not start what it was to start: {_sentence(why)}"


def close_requested(name: str, version: str) -> str:
    """To an application: an update is about to end it."""
    return f"{name} {version} is about to be activated: save your work and close."


def in_bytes(count: int) -> str:
    """A size for a person: powers of 1000, one digit after the point where it says something."""
    size = float(count)
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            break
        size /= 1000
    digits = 1 if unit != "bytes" and size < 100 else 0
    return f"{size:.{digits}f} {unit}"


def _sentence(text: str) -> str:
    """`text` on one line, with a full stop at its end."""
    line = " ".join(text.split()) or "the reason is not known"
    return line if line[-1] in ".!?" else f"{line}."
