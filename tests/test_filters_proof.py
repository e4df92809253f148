"""The proof of the filters: made-up documents and filters, answered by the product and by the tests' own matcher.

A case is a filter asked of a document. FILTER_EXAMPLES (default 108) times twenty-four documents meet ten filters made
of the same few names and values.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import filter_cases
import mongo_match
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirror.filters import FilterError, to_sql
from mirror.store.documents import explode

EXAMPLES = int(os.environ.get("FILTER_EXAMPLES", "108"))
DOCUMENTS, FILTERS = 24, 10
Documents = tuple[dict[str, Any], dict[str, Any]]


def wire(document: dict[str, Any]) -> str:
    return json.dumps({name: {"value": value} for name, value in document.items()})


class Table:
    """The tables that a filter reads, in memory: a run per pair of config and summary, in nodes as the store's."""

    def __init__(self) -> None:
        self.db = duckdb.connect()
        self.db.execute("set threads = 1; create schema raw; create table runs (rid bigint)")
        for name in ("config", "summary"):
            columns = "rid bigint, path varchar, type varchar, num double, str varchar"
            self.db.execute(f"create table raw.{name}_live ({columns})")

    def fill(self, documents: Sequence[Documents]) -> None:
        self.runs = [{"config": config, "summary_metrics": summary} for config, summary in documents]
        self.db.execute("delete from runs; delete from raw.config_live; delete from raw.summary_live")
        self.db.execute(f"insert into runs from range({len(documents)})")
        for table, texts in (
            ("config", [wire(config) for config, _ in documents]),
            ("summary", [json.dumps(summary) for _, summary in documents]),
        ):
            nodes = [[i, *node] for i, text in enumerate(texts) for node in explode(text, unwrap=table == "config")[1]]
            self.db.executemany(f"insert into raw.{table}_live values (?, ?, ?, ?, ?)", nodes)

    def answers(self, expressions: Sequence[str]) -> list[list[bool]]:
        """For each SQL expression, whether each document meets it."""
        if not expressions:
            return []
        rows = self.db.execute(f"select {', '.join(expressions)} from runs order by rid").fetchall()
        return [[bool(row[i]) for row in rows] for i in range(len(expressions))]

    def mismatches(self, queries: Sequence[Any]) -> Iterator[str]:
        """Where the product and the matcher disagree; filters that the product refuses are counted."""
        taken = {sql: query for query in queries if (sql := translated(query)) is not None}
        for (sql, query), found in zip(taken.items(), self.answers(list(taken)), strict=True):
            expected = [mongo_match.matches(run, query) for run in self.runs]
            seen["cases"] += len(expected)
            seen["filters"] += 1
            seen["telling"] += 0 < sum(expected) < len(expected)
            for run, ours, theirs in zip(self.runs, found, expected, strict=True):
                if ours != theirs:
                    yield f"{json.dumps(query, ensure_ascii=False)} on {run}: {ours}, not {theirs}; {sql}"


def translated(query: Any) -> str | None:
    try:
        return to_sql(query)
    except FilterError:  # e.g. $not without an operator in $elemMatch
        seen["refused"] += 1
        return None


seen: Counter[str] = Counter()


@pytest.fixture(scope="module")
def table() -> Table:
    return Table()


def meetings(alphabet: filter_cases.Alphabet) -> st.SearchStrategy[Any]:
    document = filter_cases.documents_of(alphabet)
    return st.tuples(
        st.lists(st.tuples(document, document), min_size=DOCUMENTS, max_size=DOCUMENTS),
        st.lists(filter_cases.filters_of(alphabet), min_size=FILTERS, max_size=FILTERS),
    )


@pytest.mark.slow
@pytest.mark.parametrize("alphabet", filter_cases.ALPHABETS)
def test_agrees_with_the_independent_matcher(table: Table, alphabet: str) -> None:
    @settings(
        max_examples=EXAMPLES // len(filter_cases.ALPHABETS), deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(meetings(filter_cases.ALPHABETS[alphabet]))
    def agrees(meeting: tuple[list[Documents], list[Any]]) -> None:
        documents, queries = meeting
        table.fill(documents)
        assert list(table.mismatches(queries)) == []

    agrees()


@pytest.mark.slow
def test_there_were_enough_cases() -> None:
    """Runs after the test above, in the same process."""
    if EXAMPLES >= 108 and seen["filters"]:
        assert seen["cases"] >= 20_000, seen
        assert seen["telling"] >= 0.15 * seen["filters"], "filters that all or no documents meet prove little"
        assert seen["refused"] <= 0.05 * seen["filters"], seen
