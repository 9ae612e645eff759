"""What the evidence says of a rollout's challenger. Pure: a finding out of what is known.

Above `evidence`. A split that is not as asked for comes first: it voids everything else. Then what
needs no labels: errors, slow answers, decisions that differ and an estimated drop. Each may show
harm and nothing more. Then the labels: a paired difference where both models answered the same
requests, a split one where each answered its own.
"""

from __future__ import annotations

import math

import numpy as np

from steadfeast.measures import AnytimeMean, split_evidence
from steadfeast.monitor.rollouts.evidence import Budget, Evidence, Finding, Limits, Verdict

_LONGEST_DAYS = 3650.0
_FAR_BLOCKS = 100_000


def judge(evidence: Evidence, limits: Limits, budget: Budget) -> Finding:
    """Return what the evidence allows to say; the first that decides does."""
    failed = _split_failed(evidence, limits, budget)
    if failed is not None:
        return failed
    harm = _without_labels(evidence, limits, budget)
    if harm:
        return _finding(Verdict.HARMFUL, harm, evidence, limits, budget)
    if evidence.withheld:
        return _finding(Verdict.UNDECIDED, evidence.withheld, evidence, limits, budget)
    return _by_labels(evidence, limits, budget)


def _split_failed(evidence: Evidence, limits: Limits, budget: Budget) -> Finding | None:
    if len(evidence.units) < 2 or not sum(evidence.units):  # noqa: PLR2004 - nothing was split
        return None
    if split_evidence(evidence.units, evidence.weights) < 1 / budget.false_split:
        return None
    seen = " and ".join(str(count) for count in evidence.units)
    asked = " and ".join(f"{sum(evidence.units) * share:.0f}" for share in evidence.weights)
    reason = f"sample-ratio mismatch: {seen} units where {asked} were asked for; the step is void"
    return Finding(
        Verdict.INVALID, reason, margin=limits.margin, labels=evidence.labels,
        units=sum(evidence.units),
    )  # fmt: skip


def _without_labels(evidence: Evidence, limits: Limits, budget: Budget) -> str:
    """Return the harm that is shown without labels; empty if none is."""
    alpha = budget.of_guard
    for name, counts, limit in (
        ("answers failed", evidence.errors, limits.errors),
        ("answers were slow", evidence.slow, limits.slow),
    ):
        if counts is None or limit is None:
            continue
        theirs, ours = counts
        low, _ = ours.ends(alpha / 2)
        _, usual = theirs.ends(alpha / 2) if sum(theirs.rows) else (0.0, 0.0)
        if low > max(limit, usual):
            return (
                f"{ours.share:.2%} of the challenger's {name} (above {low:.2%}); {limit:.2%} is "
                f"allowed, the champion has {theirs.share:.2%}"
            )
    if evidence.disagreement is not None and limits.disagreement is not None:
        low, _ = evidence.disagreement.ends(alpha)
        if low > limits.disagreement:
            return (
                f"the two decide otherwise on {evidence.disagreement.share:.1%} of the requests "
                f"(above {low:.1%}); {limits.disagreement:.1%} is allowed"
            )
    if evidence.estimated is not None and limits.estimated_drop is not None:
        high = evidence.estimated.high(alpha)
        if high < -limits.estimated_drop:
            return (
                f"before labels the metric is estimated to be worse by "
                f"{-evidence.estimated.value:.4f} (at least {-high:.4f}); "
                f"{limits.estimated_drop:g} is allowed"
            )
    return ""


def _by_labels(evidence: Evidence, limits: Limits, budget: Budget) -> Finding:
    arms = evidence.split
    if arms is not None and arms.high(budget.of_guard) < -limits.margin:
        reason = f"the arms differ by {arms.value:+.4f}, below {arms.high(budget.of_guard):+.4f}"
        return _finding(Verdict.HARMFUL, reason, evidence, limits, budget)
    mean = evidence.difference
    if mean is None:
        return _finding(Verdict.UNDECIDED, "no labels yet", evidence, limits, budget)
    low, high = mean.low(budget.false_promotion), mean.high(_rollback(evidence, budget))
    interval = f"{mean.value:+.4f} ({_number(low)} to {_number(high)}), margin {limits.margin:g}"
    enough = evidence.labels >= limits.labels
    if high < -limits.margin:
        verdict, said = Verdict.HARMFUL, "clearly worse"
    elif high < 0 and mean.value < -limits.margin:
        verdict, said = Verdict.WORSE, "worse"
    elif not enough:
        verdict, said = Verdict.UNDECIDED, f"{evidence.labels} of {limits.labels} labels"
    elif low > 0:
        verdict, said = Verdict.BETTER, "better"
    elif low > -limits.margin:
        verdict, said = Verdict.NOT_WORSE, "not worse"
    else:
        verdict, said = Verdict.UNDECIDED, "cannot tell"
    return _finding(verdict, f"{said}: {interval}", evidence, limits, budget)


def _finding(
    verdict: Verdict, reason: str, evidence: Evidence, limits: Limits, budget: Budget
) -> Finding:
    mean = evidence.difference
    if mean is None:
        return Finding(
            verdict, reason, margin=limits.margin, labels=evidence.labels, units=sum(evidence.units)
        )
    more = 0.0
    if verdict is Verdict.UNDECIDED and not evidence.withheld:
        more = _more(mean, limits, budget, _rollback(evidence, budget))
        days = evidence.days * more
        reason += (
            f"; about {days:.0f} more days ({evidence.labels * more:.0f} labels) would"
            if 0 < days < _LONGEST_DAYS
            else "; no number of days would, if the difference stays there"
            if days
            else ""
        )
    return Finding(
        verdict, reason, mean.value, mean.low(budget.false_promotion),
        mean.high(_rollback(evidence, budget)), limits.margin, evidence.labels,
        sum(evidence.units), evidence.days * more if more else 0.0,
        evidence.labels * more if more else 0.0,
    )  # fmt: skip


def _rollback(evidence: Evidence, budget: Budget) -> float:
    return budget.of_labels if evidence.paired is not None else budget.of_guard


def _more(mean: AnytimeMean, limits: Limits, budget: Budget, rollback: float) -> float:
    """Return how many times today's blocks are still needed, if the difference stays."""
    if not math.isfinite(mean.error):
        return math.inf
    up = mean.value + limits.margin
    distance, alpha = (up, budget.false_promotion) if up > 0 else (-mean.value, rollback)
    spread = mean.error * math.sqrt(mean.blocks)
    for blocks in np.geomspace(max(mean.blocks, 2.0), _FAR_BLOCKS, 200):
        reach = AnytimeMean(0.0, spread / math.sqrt(blocks), float(blocks)).reach(alpha)
        if reach < distance:
            return max(float(blocks) / mean.blocks - 1, 1 / mean.blocks)
    return math.inf


def _number(value: float) -> str:
    return f"{value:+.4f}" if math.isfinite(value) else "unknown"
