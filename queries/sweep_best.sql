-- question: Which run is the best of each sweep? By the metric and goal of the sweep, read from the summary.
-- param project text = null: only sweeps of this project
-- param metric text = null: metric of sweeps that name none
-- param goal min|max = min: goal of sweeps that name none
with wanted as (
  select
    s.source,
    s.entity,
    s.project,
    s.sweep_id,
    s.name as sweep_name,
    coalesce(s.metric, cast($metric as varchar)) as metric,
    case
      when s.goal = 'maximize' then 'max'
      when s.goal = 'minimize' then 'min'
      else $goal
    end as goal
  from sweeps as s
  where cast($project as varchar) is null or s.project = cast($project as varchar)
),
scored as (
  select
    w.source,
    w.entity,
    w.project,
    w.sweep_id,
    w.sweep_name,
    w.metric,
    w.goal,
    r.rid,
    r.run_id,
    r.name,
    r.state,
    r.created_at,
    n.num as value,
    -- a literal `a.b` comes before a nested one
    row_number() over (partition by w.source, w.entity, w.project, w.sweep_id, r.rid order by n.path) as reading
  from wanted as w
  join runs as r
    on r.source = w.source and r.entity = w.entity and r.project = w.project and r.sweep = w.sweep_id
  join summary as n on n.rid = r.rid
  where n.type = 'number'
    and n.num is not null
    and n.path in (
      '/' || replace(replace(w.metric, '~', '~0'), '/', '~1'),
      '/' || replace(replace(replace(w.metric, '~', '~0'), '/', '~1'), '.', '/')
    )
),
ranked as (
  select
    s.*,
    count(*) over (partition by s.source, s.entity, s.project, s.sweep_id) as runs_with_metric,
    row_number() over (
      partition by s.source, s.entity, s.project, s.sweep_id
      order by case when s.goal = 'min' then s.value else -s.value end, s.created_at, s.rid
    ) as place
  from scored as s
  where s.reading = 1
)
select
  w.source,
  w.entity,
  w.project,
  w.sweep_id,
  w.sweep_name,
  w.metric,
  w.goal,
  r.run_id,
  r.name,
  r.state,
  r.value,
  coalesce(r.runs_with_metric, 0) as runs_with_metric
from wanted as w
left join ranked as r
  on r.source = w.source and r.entity = w.entity and r.project = w.project and r.sweep_id = w.sweep_id and r.place = 1
order by w.source, w.entity, w.project, w.sweep_id
