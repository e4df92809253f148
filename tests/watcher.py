"""A reader that looks at a mirror all the time and believes nothing:

    python watcher.py ROOT TRUTH.parquet

TRUTH holds run_id, row and h (a hash of everything in that row). Until SIGTERM it opens the mirror again and again
and checks that every run shows exactly its first `history_rows` rows, whole, and documents for every run. Prints a
line when it begins, one for every violation or error, and at the end how many looks it took.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from mirror.errors import StoreError
from mirror.store import Reader

CONTENT = """
    select r.run_id, r.history_rows, coalesce(c.rows, 0) as rows, coalesce(c.h, 0) as h,
           r.config is not null and r.metadata is not distinct from r.metadata as documented,
           (select count(*) from config n where n.rid = r.rid and n.path = '/n') as nodes
    from runs r left join (
        select rid, count(distinct row) as rows,
               sum(hash(key, path_id, row, step, ts, kind, v, j) % 1000000007)::bigint as h
        from raw.history_live group by rid) c using (rid)
"""
ROWS = """
    select run_id, row,
           sum(hash(c.key, c.path_id, c.row, c.step, c.ts, c.kind, c.value, c.j) % 1000000007)::bigint as h
    from history c group by all
"""


def violations(root: Path, truth: str) -> list[str]:
    with Reader(root) as reader:
        db = reader.connect()
        db.execute(f"create temp view seen as {CONTENT}")
        found = db.execute(
            f"""
            select s.*, coalesce(t.rows, 0), coalesce(t.h, 0)
            from seen s left join (
                select run_id, count(*) filter (p.row < seen.history_rows) as rows,
                       sum(p.h) filter (p.row < seen.history_rows) as h
                from read_parquet('{truth}') p join seen using (run_id) group by all) t using (run_id)
            where s.rows <> s.history_rows or s.rows <> coalesce(t.rows, 0) or s.h <> coalesce(t.h, 0)
               or not documented or nodes <> 1
            """
        ).fetchall()
        return [f"snapshot {reader.snapshot.id}: {row}" for row in found]


def main(root: Path, truth: str) -> None:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    print("WATCHING", flush=True)
    looks = 0
    while not stopped or not looks:
        try:
            for line in violations(root, truth):
                print("VIOLATION", line, flush=True)
            looks += 1
            time.sleep(0.1)  # who is watched has to get on, too
        except StoreError as e:
            if "snapshot.json" in str(e) or "does not exist" in str(e) or "not a mirror" in str(e):
                time.sleep(0.1)
                continue  # nothing was ever published yet
            print("ERROR", e, flush=True)
        except Exception as e:
            print("ERROR", type(e).__name__, e, flush=True)
    print("LOOKS", looks, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
