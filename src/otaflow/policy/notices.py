"""Notices to people, over apprise: to the configured URLs, within a bounded time, and never in an update's way."""

import logging
import threading
from collections.abc import Sequence

log = logging.getLogger(__name__)

TITLE = "otaflow"


def send(texts: Sequence[str], urls: Sequence[str], *, title: str = TITLE, timeout: float = 30) -> bool:
    """Send `texts`, as one notice, to each of `urls`; whether all of them took it within `timeout` seconds.

    Never raises: what went wrong is logged. An apprise URL holds a password, so only its kind is.
    """
    if not urls or not texts:
        return True
    body = "\n".join(texts)
    results: dict[int, bool] = {}
    senders = [
        threading.Thread(target=_send, args=(number, url, title, body, results), daemon=True, name="notice")
        for number, url in enumerate(urls)
    ]
    for sender in senders:
        sender.start()
    _join_all(senders, timeout)
    for number, url in enumerate(urls):
        if number not in results:
            log.warning("cannot notify over %s: no answer within %g s", kind_of(url), timeout)
    return all(results.get(number, False) for number in range(len(urls)))


def kind_of(url: str) -> str:
    """The part of an apprise URL that may be shown."""
    scheme, separator, _ = url.partition("://")
    return scheme if separator else "a URL without ://"


def _send(number: int, url: str, title: str, body: str, results: dict[int, bool]) -> None:
    """Send to one URL, in a thread of its own: one that hangs keeps no other waiting."""
    try:
        import apprise

        # The library's own lines are quoted nowhere: with some services they hold the URL.
        target = apprise.Apprise()
        if not target.add(url):
            log.warning("cannot notify over %s: apprise does not understand the URL", kind_of(url))
            results[number] = False
            return
        sent = bool(target.notify(body=body, title=title))
        log.log(
            logging.INFO if sent else logging.WARNING,
            "%s over %s",
            "notified" if sent else "cannot notify",
            kind_of(url),
        )
        results[number] = sent
    except Exception as error:
        log.warning("cannot notify over %s: %s", kind_of(url), type(error).__name__)
        results[number] = False


def _join_all(threads: Sequence[threading.Thread], timeout: float) -> None:
    """Wait for all of `threads`, together at most `timeout` seconds."""
    import time

    end = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
