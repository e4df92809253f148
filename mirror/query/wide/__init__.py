"""Wide views: `history_wide`, `system_wide` and `runs_wide`, which have a column for whatever a query mentions.

No view could have all columns (keys are data, and there may be thousands), so a query that names one is rewritten:
sqlglot finds the columns it mentions, the key catalogue says which keys they are and of what type, and the view's
name is replaced by a subquery that brings just these. The rest of the text stays as it was written.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mirror.query.wide.splice import Statement

if TYPE_CHECKING:
    from mirror.query.sql import Params, Sandbox

__all__ = ["VIEWS", "Statement", "rewritten"]

VIEWS = ("history_wide", "system_wide", "runs_wide")
_VIEW = re.compile(rf"(?i)\b({'|'.join(VIEWS)})\b")


def rewritten(sandbox: Sandbox, sql: str, params: Params) -> tuple[Statement, Params]:
    """The statement that answers `sql` without wide views, and its parameters. QueryError for a column that there is
    not, with the one that was probably meant."""
    statement = Statement(sql, sql)
    if not _VIEW.search(sql):
        return statement, params
    from mirror.query.wide.rewrite import Rewriting

    return Rewriting(sandbox, statement, params).done()
