-- question: How does a metric go on average over runs that differ in their seed only? Mean, deviation and 95 % interval a step.
-- param key text: key of the history, e.g. loss or train/loss
-- param by text = null: config key that tells variants apart, e.g. lr or opt.lr; without it the runs' group does
-- param project text = null: only runs of this project
with variants as (
  select
    r.rid,
    r.source,
    r.entity,
    r.project,
    case when cast($by as varchar) is null then r."group" end as variant
  from runs as r
  where cast($by as varchar) is null
    and (cast($project as varchar) is null or r.project = cast($project as varchar))
  union all
  select
    n.rid,
    n.source,
    n.entity,
    n.project,
    n.variant
  from (
    select
      c.rid,
      c.source,
      c.entity,
      c.project,
      coalesce(c.str, cast(c.num as varchar)) as variant,
      -- a literal `a.b` comes before a nested one
      row_number() over (partition by c.rid order by c.path) as reading
    from config as c
    where c.path in (
      '/' || replace(replace(cast($by as varchar), '~', '~0'), '/', '~1'),
      '/' || replace(replace(replace(cast($by as varchar), '~', '~0'), '/', '~1'), '.', '/')
    )
      and (cast($project as varchar) is null or c.project = cast($project as varchar))
  ) as n
  where n.reading = 1
),
-- a step that was logged twice counts once, with its last value
points as (
  select
    h.rid,
    coalesce(h.step, h.row) as step,
    h.value,
    row_number() over (partition by h.rid, coalesce(h.step, h.row) order by h.row desc) as place
  from history as h
  where h.key = $key
    and h.kind in ('number', 'int')
    and h.value is not null
),
means as (
  select
    v.source,
    v.entity,
    v.project,
    v.variant,
    p.step,
    count(*) as runs,
    avg(p.value) as mean,
    stddev_samp(p.value) as deviation,
    min(p.value) as least,
    max(p.value) as greatest
  from points as p
  join variants as v on v.rid = p.rid
  where p.place = 1
  group by v.source, v.entity, v.project, v.variant, p.step
),
-- Student's t for 95 %, by degrees of freedom: exact for few, by an expansion around 1.96 for more
quantiles as (
  select
    m.*,
    case
      when m.runs = 2 then 12.7062
      when m.runs = 3 then 4.3027
      when m.runs = 4 then 3.1824
      when m.runs = 5 then 2.7764
      when m.runs > 5 then 1.959964 + 2.372271 / (m.runs - 1) + 2.822498 / ((m.runs - 1) * (m.runs - 1))
        + 2.555852 / ((m.runs - 1) * (m.runs - 1) * (m.runs - 1))
    end as t
  from means as m
)
select
  source,
  entity,
  project,
  variant,
  step,
  runs,
  mean,
  deviation,
  mean - t * deviation / sqrt(runs) as low,
  mean + t * deviation / sqrt(runs) as high,
  least,
  greatest
from quantiles
order by source, entity, project, variant, step
