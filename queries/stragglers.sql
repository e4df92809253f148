-- question: Which runs still count as running, and are they alive? Beside the usual time of finished runs of their project.
-- param project text = null: only runs of this project
-- param silent number = 0: only runs that were silent for so many hours, seen from the newest sign of life in the mirror
with timed as (
  select
    r.source,
    r.entity,
    r.project,
    r.run_id,
    r.rid,
    r.name,
    coalesce(r.username, r.user_name) as username,
    r.state,
    r.created_at,
    r.heartbeat_at,
    r.history_last_step,
    date_diff('second', r.created_at, r.heartbeat_at) / 3600.0 as hours
  from runs as r
  where cast($project as varchar) is null or r.project = cast($project as varchar)
),
newest as (
  select max(heartbeat_at) as seen
  from runs
),
finished as (
  select
    t.source,
    t.entity,
    t.project,
    t.hours,
    row_number() over (partition by t.source, t.entity, t.project order by t.hours) as place,
    count(*) over (partition by t.source, t.entity, t.project) as runs
  from timed as t
  where t.state = 'finished'
    and t.hours is not null
),
usual as (
  select
    source,
    entity,
    project,
    avg(hours) as hours
  from finished
  where place in (floor((runs + 1) / 2.0), floor((runs + 2) / 2.0))
  group by source, entity, project
),
waiting as (
  select
    t.*,
    u.hours as usual_hours,
    date_diff('second', coalesce(t.heartbeat_at, t.created_at), n.seen) / 3600.0 as silent_hours
  from timed as t
  cross join newest as n
  left join usual as u on u.source = t.source and u.entity = t.entity and u.project = t.project
  where t.state in ('running', 'pending')
)
select
  source,
  entity,
  project,
  run_id,
  name,
  username,
  state,
  created_at,
  heartbeat_at,
  history_last_step as last_step,
  hours,
  usual_hours,
  silent_hours
from waiting
where cast($silent as double) = 0
   or silent_hours >= cast($silent as double)
order by silent_hours desc, source, entity, project, run_id, rid
