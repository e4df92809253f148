-- question: What does each project hold in the mirror? Counts of rows, values and lines, and the size of its files at the source.
with logged as (
  select
    m.rid,
    sum(m.n) as cells,
    count(*) as keys
  from metrics as m
  group by m.rid
),
listed as (
  select
    f.rid,
    count(*) as files,
    sum(f.size) as bytes
  from files as f
  group by f.rid
)
select
  r.source,
  r.entity,
  r.project,
  count(*) as runs,
  sum(r.history_rows) as history_rows,
  coalesce(sum(l.cells), 0) as history_values,
  coalesce(max(l.keys), 0) as most_keys_of_a_run,
  sum(r.system_rows) as system_rows,
  sum(r.logs_rows) as console_lines,
  sum(coalesce(length(r.config), 0) + coalesce(length(r.summary), 0)) as document_characters,
  coalesce(sum(f.files), 0) as files,
  coalesce(sum(f.bytes), 0) as file_bytes_at_source
from runs as r
left join logged as l on l.rid = r.rid
left join listed as f on f.rid = r.rid
group by r.source, r.entity, r.project
order by history_values desc, r.source, r.entity, r.project
