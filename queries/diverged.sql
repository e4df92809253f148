-- question: Which runs diverged? Their metric became NaN or infinite, or ended above where it began.
-- param key text: key of the history that should fall, e.g. loss or train/loss
-- param factor number = 1: ended above the first value times this
-- param project text = null: only runs of this project
with cells as (
  select
    h.rid,
    h.row,
    coalesce(h.step, h.row) as step,
    h.kind,
    h.value
  from history as h
  where h.key = $key
    and h.kind in ('number', 'int', 'nonfinite')
    and h.value is not null
    and (cast($project as varchar) is null or h.project = cast($project as varchar))
),
broken as (
  select
    rid,
    min(step) as step,
    count(*) as points
  from cells
  where kind = 'nonfinite'
  group by rid
),
ends as (
  select
    rid,
    step,
    value,
    row_number() over (partition by rid order by row) as from_start,
    row_number() over (partition by rid order by row desc) as from_end
  from cells
  where kind <> 'nonfinite'
),
spans as (
  select
    rid,
    count(*) as points,
    max(case when from_start = 1 then value end) as first_value,
    max(case when from_end = 1 then value end) as last_value,
    max(case when from_end = 1 then step end) as last_step
  from ends
  group by rid
)
select
  r.source,
  r.entity,
  r.project,
  r.run_id,
  r.name,
  r.state,
  case when b.rid is not null then 'not finite' else 'above start' end as reason,
  b.step as first_nonfinite_step,
  coalesce(b.points, 0) as nonfinite_points,
  s.first_value,
  s.last_value,
  s.last_step
from runs as r
left join spans as s on s.rid = r.rid
left join broken as b on b.rid = r.rid
where b.rid is not null
   or (s.points > 1 and s.last_value > s.first_value * cast($factor as double))
order by r.source, r.entity, r.project, r.run_id, r.rid
