-- question: How do two runs differ in what they logged? Every metric of both with its points, extremes and last value.
-- param a run: one run, as entity/project/run, a run id or a URL
-- param b run: the other run
with logged as (
  select
    m.rid,
    m.key,
    sum(m.n) as points,
    min(m.min_v) as least,
    max(m.max_v) as greatest,
    max(m.last_row) as last_row
  from metrics as m
  where m.rid in ($a, $b)
  group by m.rid, m.key
),
-- a name may be nested in some rows and literal in others: the later cell is the last
finished as (
  select
    l.rid,
    l.key,
    l.points,
    l.least,
    l.greatest,
    max(m.last_v) as last_value
  from logged as l
  join metrics as m on m.rid = l.rid and m.key = l.key and m.last_row = l.last_row
  group by l.rid, l.key, l.points, l.least, l.greatest
)
select
  coalesce(one.key, other.key) as key,
  one.points as a_points,
  other.points as b_points,
  one.least as a_least,
  other.least as b_least,
  one.greatest as a_greatest,
  other.greatest as b_greatest,
  one.last_value as a_last,
  other.last_value as b_last,
  other.last_value - one.last_value as difference
from (select * from finished where rid = $a) as one
full join (select * from finished where rid = $b) as other on other.key = one.key
order by 1
