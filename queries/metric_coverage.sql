-- question: Which metrics do the runs of a project log, how many of them, and of what kind?
-- param project text = null: only runs of this project
with chosen as (
  select
    r.rid,
    r.source,
    r.entity,
    r.project
  from runs as r
  where r.history_rows > 0
    and (cast($project as varchar) is null or r.project = cast($project as varchar))
),
totals as (
  select
    source,
    entity,
    project,
    count(*) as runs
  from chosen
  group by source, entity, project
)
select
  t.source,
  t.entity,
  t.project,
  m.key,
  count(distinct m.rid) as runs,
  count(distinct m.rid) * 1.0 / max(t.runs) as share,
  sum(m.n) as points,
  sum(m.n_number + m.n_int) as numbers,
  sum(m.n_nonfinite) as nonfinite,
  sum(m.n_string) as strings,
  sum(m.n_bool) as booleans,
  sum(m.n_json) as documents,
  sum(m.n_null) as nulls,
  min(m.first_step) as first_step,
  max(m.last_step) as last_step
from metrics as m
join chosen as c on c.rid = m.rid
join totals as t on t.source = c.source and t.entity = c.entity and t.project = c.project
group by t.source, t.entity, t.project, m.key
order by t.source, t.entity, t.project, runs desc, m.key
