-- question: What differs between the configs of two runs? Lists are compared whole.
-- param a run: one run, as entity/project/run, a run id or a URL
-- param b run: the other run
with nodes as (
  select
    c.rid,
    c.path,
    c.type,
    case
      when c.type = 'null' then 'null'
      when c.type = 'bool' then case when c.num = 1 then 'true' else 'false' end
      when c.str is not null then c.str
      when c.num = floor(c.num) and abs(c.num) < 1e15 then cast(cast(c.num as bigint) as varchar)
      else cast(c.num as varchar)
    end as value
  from config as c
  where c.rid in ($a, $b)
    and (c.type <> 'object' or c.str = '{}')
    -- elements of lists have nodes too, unless the list is long
    and not exists (
      select 1
      from config as l
      where l.rid = c.rid
        and l.type = 'array'
        and substring(c.path, 1, length(l.path) + 1) = l.path || '/'
    )
)
select
  coalesce(one.path, other.path) as path,
  one.value as a,
  other.value as b
from (select * from nodes where rid = $a) as one
full join (select * from nodes where rid = $b) as other on other.path = one.path
where one.value is null
   or other.value is null
   or one.value <> other.value
   or one.type <> other.type
order by 1
