"""A decision in words: what `otaflow check --explain` says about "why not now"."""

from otaflow.policy.decide import Decision, Verdict
from otaflow.policy.moments import in_words

_SAYS = {
    Verdict.INSTALL: "will be installed now",
    Verdict.ASK: "waits for your answer",
    Verdict.WAIT: "waits",
    Verdict.REFUSE: "is refused",
}
_TO_DO = {
    Verdict.ASK: "answer with `otaflow consent now`, `at-next-restart`, `in-window` or `not-this-one`",
    Verdict.REFUSE: "`otaflow consent withdraw` takes the refusal back; another content is offered anew",
}


def explain(decision: Decision) -> list[str]:
    """Lines for a terminal or a log: the verdict, each reason, what was overridden, what can be done."""
    until = f" until {in_words(decision.until)}" if decision.verdict is Verdict.WAIT and decision.until else ""
    priority = " (priority)" if decision.offer.priority else ""
    lines = [f"{decision.offer.title()}{priority} {_SAYS[decision.verdict]}{until}"]
    for reason in decision.reasons:
        end = f" (until {in_words(reason.until)})" if reason.until else ""
        lines.append(f"  {'because' if decision.verdict is Verdict.INSTALL else 'not now'}: {reason.text}{end}")
    lines += [f"  overridden: {override}" for override in decision.overrides]
    if decision.verdict in _TO_DO:
        lines.append(f"  to do: {_TO_DO[decision.verdict]}")
    return lines
