-- question: How did a metric develop in each run? Steps in equal stretches, with least, mean and greatest value.
-- param key text: key of the history, e.g. loss or train/loss
-- param buckets count = 50: stretches a run
-- param project text = null: only runs of this project
-- param run run = null: only this run, as entity/project/run, a run id or a URL
with cells as (
  select
    h.rid,
    coalesce(h.step, h.row) as x,
    case when h.kind = 'nonfinite' then null else h.value end as value,
    case when h.kind = 'nonfinite' then 1 else 0 end as nonfinite
  from history as h
  where h.key = $key
    and h.kind in ('number', 'int', 'nonfinite')
    and (cast($project as varchar) is null or h.project = cast($project as varchar))
    and (cast($run as bigint) is null or h.rid = cast($run as bigint))
),
bounds as (
  select rid, min(x) as first_x, max(x) as last_x
  from cells
  group by rid
),
placed as (
  select
    c.rid,
    cast(
      floor(cast(c.x - b.first_x as double) * cast($buckets as bigint) / cast(b.last_x - b.first_x + 1 as double))
      as bigint
    ) as bucket,
    c.x,
    c.value,
    c.nonfinite
  from cells as c
  join bounds as b on b.rid = c.rid
)
select
  r.source,
  r.entity,
  r.project,
  r.run_id,
  r.name,
  p.bucket,
  min(p.x) as first_step,
  max(p.x) as last_step,
  count(*) as points,
  sum(p.nonfinite) as nonfinite,
  min(p.value) as least,
  avg(p.value) as mean,
  max(p.value) as greatest
from placed as p
join runs as r on r.rid = p.rid
group by r.source, r.entity, r.project, r.run_id, r.name, r.rid, p.bucket
order by r.rid, p.bucket
