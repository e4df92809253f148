-- question: What did the last sync of each project bring? Runs that are new, changed or gone since it began.
-- param project text = null: only this project
with syncs as (
  select
    s.source,
    s.entity,
    s.project,
    s.started_at,
    row_number() over (partition by s.source, s.entity, s.project order by s.started_at desc) as place
  from sync_log as s
  where cast($project as varchar) is null or s.project = cast($project as varchar)
),
spans as (
  select
    source,
    entity,
    project,
    max(case when place = 1 then started_at end) as last_at,
    max(case when place = 2 then started_at end) as before_at
  from syncs
  where place <= 2
  group by source, entity, project
)
select
  r.source,
  r.entity,
  r.project,
  r.run_id,
  r.name,
  case
    when r.deleted_at is not null then 'gone'
    when s.before_at is null or r.created_at >= s.before_at then 'new'
    else 'changed'
  end as change,
  r.state,
  r.created_at,
  r.mirrored_at,
  r.history_rows
from runs as r
join spans as s on s.source = r.source and s.entity = r.entity and s.project = r.project
where r.mirrored_at >= s.last_at
order by r.source, r.entity, r.project, change, r.run_id, r.rid
