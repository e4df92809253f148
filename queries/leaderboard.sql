-- question: Which runs did best on a metric? Ranked by the number in their summary; NaN does not rank.
-- param metric text: key of the summary, e.g. loss or val/acc; dots also reach nested keys, e.g. val.acc
-- param goal max|min = max: which end is better
-- param project text = null: only runs of this project
-- param limit count = 20: how many runs
with scored as (
  select
    s.rid,
    s.num as value,
    -- a literal `a.b` comes before a nested one
    row_number() over (partition by s.rid order by s.path) as reading
  from summary as s
  where s.type = 'number'
    and s.path in (
      '/' || replace(replace($metric, '~', '~0'), '/', '~1'),
      '/' || replace(replace(replace($metric, '~', '~0'), '/', '~1'), '.', '/')
    )
),
ranked as (
  select
    row_number() over (
      order by case when $goal = 'min' then c.value else -c.value end, r.created_at, r.rid
    ) as place,
    r.source,
    r.entity,
    r.project,
    r.run_id,
    r.name,
    r.state,
    c.value
  from scored as c
  join runs as r on r.rid = c.rid
  where c.reading = 1
    and (cast($project as varchar) is null or r.project = cast($project as varchar))
)
select *
from ranked
where place <= cast($limit as bigint)
order by place
