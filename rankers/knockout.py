"""Knockout: pairs meet, winners go on; one tournament finds the best, and the same bracket gives the next ones.

A bracket is a start order. In each round neighbours meet; where their number is odd, the first one has a bye, in every
second round the last one, so that nobody has two byes on end. N candidates take N - 1 duels in ⌈log2 N⌉ rounds, and the
duels of a round are asked at once. A tie goes to the one that stands first in the bracket.
"""

from __future__ import annotations

import numpy as np

from rankers.comparisons import Comparisons, Floats, Indices

_NOBODY = -1  # an empty place in the tree


def knockout(comparisons: Comparisons, start: Indices) -> tuple[Indices, Floats]:
    """Play one tournament and return (order, rounds survived), both (n,); rounds are by candidate.

    Who went out later stands higher; of those that went out in the same round, the one whose victor stands higher. When
    the budget ends in a round, those still in stand first, and of them those that won a duel in it.
    """
    rounds, victor = np.zeros(comparisons.n), np.full(comparisons.n, _NOBODY)
    standing, number = start, 0
    while len(standing) > 1:
        number += 1
        ahead, meeting, behind = _split(standing, number)
        first, second = meeting[::2], meeting[1::2]
        answers = comparisons.ask(first, second)
        played = ~np.isnan(answers)
        winners = np.where(answers >= 0.5, first, second)[played]
        losers = np.where(answers >= 0.5, second, first)[played]
        victor[losers] = winners
        if not played.all():
            rounds[winners] = number
            break
        standing = np.concatenate([ahead, winners, behind])
        rounds[standing] = number
    return _by_rounds(rounds, victor), rounds


def _split(standing: Indices, number: int) -> tuple[Indices, Indices, Indices]:
    """Return (who has a bye and stands first, those that meet, who has a bye and stands last) of a round."""
    odd, first_rests = len(standing) % 2, number % 2
    start, end = odd * first_rests, len(standing) - odd * (1 - first_rests)
    return standing[:start], standing[start:end], standing[end:]


def _by_rounds(rounds: Floats, victor: Indices) -> Indices:
    """Return the order: by rounds survived, then by the victor's place, then as given."""
    place = np.zeros(len(rounds), dtype=np.int64)
    order: list[int] = []
    out = victor != _NOBODY
    for still_in in (True, False):
        group = ~out if still_in else out
        for survived in np.unique(rounds[group])[::-1]:
            members = np.flatnonzero(group & (rounds == survived))
            if not still_in:
                members = members[np.argsort(place[victor[members]], kind="stable")]
            place[members] = len(order) + np.arange(len(members))
            order += members.tolist()
    return np.array(order, dtype=np.int64)


def duels_to_win(n: int) -> Indices:
    """Return for each place of a bracket of n how many duels its holder must win to win the tournament: (n,).

    With a comparator that prefers the better one with probability p in every duel, the best candidate of a shuffled
    bracket wins the tournament with probability mean(p ** duels_to_win(n)), which is p ** log2(n) when n is a power
    of two. Then the same holds when each duel is asked in both orders, by independent answers: the best one wins both
    with p², and one of two with 2p(1 - p); it has the tie if it stands first, one time in two: p² + p(1 - p) = p.
    """
    duels = np.zeros(n, dtype=np.int64)
    group = np.arange(n)  # of each place, which of those still in the tournament has come from it
    standing, number = np.arange(n), 0
    while len(standing) > 1:
        number += 1
        ahead, meeting, behind = _split(standing, number)
        duels += np.isin(group, meeting)
        first, second = meeting[::2], meeting[1::2]
        for winner, loser in zip(first, second, strict=True):
            group[group == loser] = winner
        standing = np.concatenate([ahead, first, behind])
    return duels


def heap(comparisons: Comparisons, start: Indices, top: int) -> tuple[Indices, Floats]:
    """Select the best `top`, one after another, from a heap of winners, and return (order, scores).

    The heap is a complete binary tree in which each node holds the winner of its two children (tournament sort). N - 1
    duels fill it; when the winner is taken out, only the duels on its path are played again: fewer than ⌈log2 N⌉ for
    each further rank. The others stand behind, by how many they have beaten, equal ones as given.

    Source: Knuth 1998, "The Art of Computer Programming" volume 3, section 5.2.3.
    """
    n = comparisons.n
    leaves = 1 << max(n - 1, 0).bit_length()
    tree = np.full(2 * leaves, _NOBODY)
    tree[leaves : leaves + n] = start
    level = leaves // 2
    while level >= 1:
        if not _decide(comparisons, tree, np.arange(level, 2 * level)):
            return positions(comparisons, [])
        level //= 2
    taken: list[int] = []
    places = {int(candidate): leaves + slot for slot, candidate in enumerate(start)}
    while tree[1] != _NOBODY:
        taken.append(int(tree[1]))
        if len(taken) == top:
            break
        node = places[taken[-1]]
        tree[node] = _NOBODY
        while node > 1:
            node //= 2
            if not _decide(comparisons, tree, np.array([node])):
                return positions(comparisons, taken)
    return positions(comparisons, taken)


def _decide(comparisons: Comparisons, tree: Indices, nodes: Indices) -> bool:
    """Put the winners of their children into the nodes; False when the budget has ended."""
    left, right = tree[2 * nodes], tree[2 * nodes + 1]
    winners = np.where(left == _NOBODY, right, left)
    meet = (left != _NOBODY) & (right != _NOBODY)
    answers = comparisons.ask(left[meet], right[meet])
    if np.isnan(answers).any():
        return False
    winners[meet] = np.where(answers >= 0.5, left[meet], right[meet])
    tree[nodes] = winners
    return True


def positions(comparisons: Comparisons, known: list[int]) -> tuple[Indices, Floats]:
    """Return (order, scores): the known ones first, the others by how many they have beaten; scores n, n - 1, …, 1."""
    others = np.setdiff1d(np.arange(comparisons.n), known)
    others = others[np.argsort(-comparisons.beaten[others], kind="stable")]
    order = np.concatenate([np.array(known, dtype=np.int64), others])
    scores = np.empty(comparisons.n)
    scores[order] = np.arange(comparisons.n, 0, -1)
    return order, scores
