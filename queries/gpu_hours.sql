-- question: How many hours did runs take, and how many GPU hours, by project and user? Counted from creation to the last sign of life.
-- param project text = null: only runs of this project
with timed as (
  select
    r.source,
    r.entity,
    r.project,
    coalesce(r.username, r.user_name) as username,
    r.state,
    date_diff('second', r.created_at, r.heartbeat_at) / 3600.0 as hours,
    cast(nullif(regexp_extract(r.metadata, '"gpu_count": *([0-9]+)', 1), '') as double) as gpus
  from runs as r
  where cast($project as varchar) is null or r.project = cast($project as varchar)
)
select
  source,
  entity,
  project,
  username,
  count(*) as runs,
  count(hours) as runs_timed,
  count(gpus) as runs_with_gpus,
  coalesce(sum(hours), 0.0) as hours,
  coalesce(sum(hours * gpus), 0.0) as gpu_hours,
  coalesce(sum(case when state in ('failed', 'crashed', 'killed') then hours * gpus end), 0.0) as gpu_hours_of_failures
from timed
group by source, entity, project, username
order by gpu_hours desc, hours desc, source, entity, project, username
