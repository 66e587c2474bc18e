"""A decision in words: what `otaflow check --explain` says about "why not now"."""

from otaflow.policy.consent import Choice
from otaflow.policy.decide import Decision, Verdict
from otaflow.policy.moments import in_words

_SAYS = {
    Verdict.INSTALL: "will be installed now",
    Verdict.ASK: "waits for your answer",
    Verdict.WAIT: "waits",
    Verdict.REFUSE: "is refused",
}


def explain(decision: Decision) -> list[str]:
    """Lines for a terminal or a log: the verdict, each reason, what was overridden, what can be done."""
    until = f" until {in_words(decision.until)}" if decision.verdict is Verdict.WAIT and decision.until else ""
    offer = decision.offer
    flags = [word for word, holds in (("priority", offer.priority), ("irreversible", offer.irreversible)) if holds]
    flagged = f" ({', '.join(flags)})" if flags else ""
    lines = [f"{offer.title()}{flagged} {_SAYS[decision.verdict]}{until}"]
    for reason in decision.reasons:
        end = f" (until {in_words(reason.until)})" if reason.until else ""
        lines.append(f"  {'because' if decision.verdict is Verdict.INSTALL else 'not now'}: {reason.text}{end}")
    lines += [f"  overridden: {override}" for override in decision.overrides]
    if to_do := _say_what_to_do(decision):
        lines.append(f"  to do: {to_do}")
    return lines


def _say_what_to_do(decision: Decision) -> str:
    name = f" --name {decision.offer.name}" if decision.offer.kind == "application" else ""
    if decision.verdict is Verdict.ASK:
        *others, last = (f"`{choice}`" for choice in decision.choices if choice is not Choice.NOW)
        return f"answer with `otaflow consent now{name}`, {', '.join(others)} or {last}"
    if decision.verdict is Verdict.REFUSE:
        return f"`otaflow consent withdraw{name}` takes the refusal back; another content is offered anew"
    return ""
