-- question: Which config keys vary among the runs of a group or project, and over which values? Lists are compared whole.
-- param project text = null: only runs of this project
-- param group text = null: only runs of this group
-- param examples count = 5: values shown of a key
with chosen as (
  select r.rid
  from runs as r
  where (cast($project as varchar) is null or r.project = cast($project as varchar))
    and (cast($group as varchar) is null or r."group" = cast($group as varchar))
),
total as (
  select count(*) as runs
  from chosen
),
nodes as (
  select
    c.path,
    c.rid,
    case
      when c.type = 'null' then 'null'
      when c.type = 'bool' then case when c.num = 1 then 'true' else 'false' end
      when c.type = 'string' then '"' || c.str || '"'
      when c.str is not null then c.str
      when c.num = floor(c.num) and abs(c.num) < 1e15 then cast(cast(c.num as bigint) as varchar)
      else cast(c.num as varchar)
    end as value
  from config as c
  join chosen as s on s.rid = c.rid
  where c.path <> ''
    and (c.type <> 'object' or c.str = '{}')
    -- elements of lists have nodes too, unless the list is long
    and not exists (
      select 1
      from config as l
      where l.rid = c.rid
        and l.type = 'array'
        and substring(c.path, 1, length(l.path) + 1) = l.path || '/'
    )
),
counted as (
  select
    n.path,
    n.value,
    count(*) as runs,
    row_number() over (partition by n.path order by count(*) desc, n.value) as place
  from nodes as n
  group by n.path, n.value
),
varying as (
  select
    c.path,
    count(*) as different,
    sum(c.runs) as runs
  from counted as c
  group by c.path
)
select
  v.path,
  v.different as different_values,
  v.runs as runs_with,
  t.runs - v.runs as runs_without,
  c.value as value,
  c.runs as runs_of_value
from varying as v
cross join total as t
join counted as c on c.path = v.path
where (v.different > 1 or v.runs < t.runs)
  and c.place <= cast($examples as bigint)
order by v.different desc, v.path, c.place
