-- question: Which runs failed, and when? By project, state and how long they had been running.
-- param project text = null: only runs of this project
with timed as (
  select
    r.source,
    r.entity,
    r.project,
    r.run_id,
    r.rid,
    r.state,
    r.created_at,
    r.history_last_step,
    date_diff('second', r.created_at, r.heartbeat_at) as seconds
  from runs as r
  where cast($project as varchar) is null or r.project = cast($project as varchar)
),
sorted as (
  select
    t.*,
    case
      when t.seconds is null then '6 unknown'
      when t.seconds < 60 then '1 below a minute'
      when t.seconds < 600 then '2 1 to 10 minutes'
      when t.seconds < 3600 then '3 10 to 60 minutes'
      when t.seconds < 36000 then '4 1 to 10 hours'
      else '5 above 10 hours'
    end as after
  from timed as t
),
totals as (
  select
    source,
    entity,
    project,
    count(*) as runs
  from timed
  group by source, entity, project
),
latest as (
  select
    s.*,
    row_number() over (
      partition by s.source, s.entity, s.project, s.state, s.after order by s.created_at desc, s.rid desc
    ) as place
  from sorted as s
  where s.state in ('failed', 'crashed', 'killed')
)
select
  l.source,
  l.entity,
  l.project,
  l.state,
  substring(l.after, 3) as after,
  count(*) as runs,
  count(*) * 1.0 / max(t.runs) as share,
  min(l.created_at) as first_at,
  max(l.created_at) as last_at,
  max(l.history_last_step) as furthest_step,
  max(case when l.place = 1 then l.run_id end) as latest_run
from latest as l
join totals as t on t.source = l.source and t.entity = l.entity and t.project = l.project
group by l.source, l.entity, l.project, l.state, l.after
order by l.source, l.entity, l.project, l.state, l.after
