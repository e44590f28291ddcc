"""Arrays in, arrays out: losses, measures and ranking models; no ids, no corpora, no files of text.

Importing this package loads nothing else: `rankers.losses` and `rankers.lists` need torch, `rankers.metrics`
only numpy.
"""
