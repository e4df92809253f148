-- question: Which config keys go with a good metric? Correlation of numbers, and the share of variance that values explain.
-- param metric text: key of the summary, e.g. loss or val/acc; dots also reach nested keys, e.g. val.acc
-- param project text = null: only runs of this project
-- param least count = 3: runs that a key must have
with readings as (
  select
    s.rid,
    s.num as y,
    -- a literal `a.b` comes before a nested one
    row_number() over (partition by s.rid order by s.path) as reading
  from summary as s
  where s.type = 'number'
    and s.num is not null
    and s.path in (
      '/' || replace(replace($metric, '~', '~0'), '/', '~1'),
      '/' || replace(replace(replace($metric, '~', '~0'), '/', '~1'), '.', '/')
    )
),
scored as (
  select
    s.rid,
    s.y
  from readings as s
  join runs as r on r.rid = s.rid
  where s.reading = 1
    and (cast($project as varchar) is null or r.project = cast($project as varchar))
),
nodes as (
  select
    c.path,
    s.y,
    case when c.type = 'number' then c.num end as x,
    c.type || ' ' || coalesce(c.str, '') || ' ' || coalesce(cast(c.num as varchar), '') as value
  from config as c
  join scored as s on s.rid = c.rid
  where c.type in ('number', 'string', 'bool', 'null')
),
valued as (
  select
    n.path,
    n.value,
    count(*) as runs,
    avg(n.y) as mean
  from nodes as n
  group by n.path, n.value
),
overall as (
  select
    n.path,
    count(*) as runs,
    count(n.x) as numbers,
    avg(n.y) as mean,
    avg(n.x) as mean_x
  from nodes as n
  group by n.path
),
spread as (
  select
    n.path,
    sum((n.y - o.mean) * (n.y - o.mean)) as total,
    sum((n.x - o.mean_x) * (n.y - o.mean)) as together,
    sum((n.x - o.mean_x) * (n.x - o.mean_x)) as total_x
  from nodes as n
  join overall as o on o.path = n.path
  group by n.path
),
explained as (
  select
    v.path,
    count(*) as different,
    sum(v.runs * (v.mean - o.mean) * (v.mean - o.mean)) as between_values
  from valued as v
  join overall as o on o.path = v.path
  group by v.path
)
select
  o.path,
  o.runs,
  e.different as different_values,
  case
    when o.numbers = o.runs and s.total > 0 and s.total_x > 0 then s.together / sqrt(s.total * s.total_x)
  end as correlation,
  case when s.total > 0 then e.between_values / s.total end as effect_size
from overall as o
join spread as s on s.path = o.path
join explained as e on e.path = o.path
where o.runs >= cast($least as bigint)
  and e.different > 1
order by
  coalesce(
    abs(
      case
        when o.numbers = o.runs and s.total > 0 and s.total_x > 0 then s.together / sqrt(s.total * s.total_x)
      end
    ),
    case when e.different < o.runs and s.total > 0 then sqrt(e.between_values / s.total) end,
    0.0
  ) desc,
  o.path
