"""Bradley-Terry scores from pairwise votes, the usual measure in user studies on harmonization.

The probability that method i is preferred to j is `1 / (1 + exp(s_j - s_i))` (Bradley and Terry 1952). The
scores are the maximum-likelihood scores with sum 0, computed with Hunter's iteration (2004). A tie counts as
half a vote for each side.
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from harmony_diffusion.errors import InputError

TIE = "tie"


@dataclass(frozen=True)
class Vote:
    """One answer to "which of the two looks more natural?".

    Attributes:
        first: First method.
        second: Second method.
        preference: 1 if the first method was preferred, 0 if the second, 0.5 for a tie.
        voter: Identifier of the voter; empty if unknown.
    """

    first: str
    second: str
    preference: float
    voter: str = ""


@dataclass(frozen=True)
class Rank:
    """Score of a method.

    Attributes:
        method: Name of the method.
        score: Bradley-Terry score. `exp(s_i - s_j)` is the odds that method i is preferred to j.
        low: Lower bound of the interval.
        high: Upper bound of the interval.
        wins: Votes for the method; a tie counts half.
        votes: Votes on pairs with the method.
    """

    method: str
    score: float
    low: float
    high: float
    wins: float
    votes: int


def read_votes(path: str | os.PathLike[str]) -> list[Vote]:
    """Read votes from a CSV file with the columns `first,second,winner` and optionally `voter`.

    Args:
        path: The file. `winner` is one of the two names or `tie`.

    Raises:
        InputError: The file cannot be read or lacks a column, or a line is not a vote between two methods.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if absent := {"first", "second", "winner"} - set(reader.fieldnames or ()):
                raise InputError(path, f"lacks the columns {', '.join(sorted(absent))}")
            return [_vote(cells, f"{path}:{reader.line_num}") for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _vote(cells: dict[str, str], place: str) -> Vote:
    first, second, winner = ((cells[key] or "").strip() for key in ("first", "second", "winner"))
    if not first or not second or first == second:
        raise InputError(place, f"is not a vote between two methods: {first!r} and {second!r}")
    preferences = {first: 1.0, second: 0.0, TIE: 0.5}
    if winner not in preferences:
        raise InputError(place, f"the winner {winner!r} is neither {first!r} nor {second!r} nor {TIE!r}")
    return Vote(first, second, preferences[winner], (cells.get("voter") or "").strip())


def rank_votes(votes: Sequence[Vote], *, confidence: float = 0.95) -> list[Rank]:
    """Score methods by pairwise votes.

    The intervals are normal approximations from the curvature of the likelihood. If every vote names its
    voter and there are several voters, the intervals account for correlated votes of one voter (White's
    sandwich estimator, clustered by voter). Otherwise votes are treated as independent.

    Args:
        votes: The votes, at least one.
        confidence: Confidence of the intervals, in (0, 1).

    Returns:
        One rank per method, the best first.

    Raises:
        InputError: There are no votes, the confidence is not between 0 and 1, or some methods never win
            against (or never lose to) the others. In the last case the most likely scores are infinite.
    """
    if not votes:
        raise InputError("votes", "is empty", "Collect some votes first.")
    if not 0 < confidence < 1:
        raise InputError("confidence", f"is {confidence}", "Give a share between 0 and 1.")
    methods = sorted({name for vote in votes for name in (vote.first, vote.second)})
    index = {name: i for i, name in enumerate(methods)}
    wins = np.zeros((len(methods), len(methods)))
    for vote in votes:
        i, j = index[vote.first], index[vote.second]
        wins[i, j] += vote.preference
        wins[j, i] += 1 - vote.preference
    _check_connected(wins, methods)
    scores = bradley_terry(wins)
    deviations = np.sqrt(np.diag(_covariance(votes, index, wins, scores)).clip(0))
    half = NormalDist().inv_cdf((1 + confidence) / 2) * deviations
    counts = wins + wins.T
    ranks = [
        Rank(m, float(s), float(s - h), float(s + h), float(wins[i].sum()), int(counts[i].sum()))
        for i, (m, s, h) in enumerate(zip(methods, scores, half, strict=True))
    ]
    return sorted(ranks, key=lambda rank: (-rank.score, rank.method))


def bradley_terry(wins: np.ndarray, *, tolerance: float = 1e-12, limit: int = 100_000) -> np.ndarray:
    """Compute the maximum-likelihood scores, `(M,)` with sum 0.

    Args:
        wins: `wins[i, j]` is the number of votes for i against j, `(M, M)`, at least 0, with diagonal 0.
            Every method must be connected to every other by a chain of wins in both directions.
        tolerance: The iteration ends when no score changes by more than this.
        limit: Largest number of iterations.

    Example:
        >>> bradley_terry(np.array([[0, 3], [1, 0]])).round(4)  # log(3) apart
        array([ 0.5493, -0.5493])
    """
    counts, total = wins + wins.T, wins.sum(1)
    strengths = np.ones(len(wins))
    for _ in range(limit):
        shares = counts / (strengths[:, None] + strengths[None])
        updated = total / shares.sum(1)
        updated /= np.exp(np.log(updated).mean())
        change = np.abs(np.log(updated / strengths)).max()
        strengths = updated
        if change < tolerance:
            break
    return np.log(strengths)


def _covariance(
    votes: Sequence[Vote], index: dict[str, int], wins: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """Return the covariance of the scores, `(M, M)`, under the constraint that they sum to 0."""
    chance = 1 / (1 + np.exp(scores[None] - scores[:, None]))
    weights = (wins + wins.T) * chance * (1 - chance)
    inverse = np.linalg.pinv(np.diag(weights.sum(1)) - weights)
    voters = [vote.voter for vote in votes]
    if not all(voters) or len(set(voters)) < 2:
        return inverse
    slopes = {voter: np.zeros(len(scores)) for voter in voters}
    for vote in votes:
        i, j = index[vote.first], index[vote.second]
        slopes[vote.voter][[i, j]] += np.array([1, -1]) * (vote.preference - chance[i, j])
    stacked = np.stack(list(slopes.values()))
    correction = len(slopes) / (len(slopes) - 1)
    return correction * inverse @ (stacked.T @ stacked) @ inverse


def _check_connected(wins: np.ndarray, methods: Sequence[str]) -> None:
    """Raise an error if a group of methods never won against the others (Ford 1957)."""
    for links, verb in ((wins > 0, "win"), (wins.T > 0, "lose")):
        reached, queue = {0}, [0]
        while queue:
            # Follow wins (or losses) from method to method.
            found = set(np.flatnonzero(links[queue.pop()]).tolist()) - reached
            reached |= found
            queue += found
        if len(reached) < len(methods):
            inside = ", ".join(methods[i] for i in sorted(reached))
            outside = ", ".join(methods[i] for i in range(len(methods)) if i not in reached)
            raise InputError(
                "votes",
                f"never let {inside} {verb} against {outside}, so their scores are infinitely far apart",
                "Collect votes between them, or leave out the method that always wins or loses.",
            )
