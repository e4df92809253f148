-- What users query. Every view shows live rows only and names runs by source, entity, project and run_id.
-- raw.* are the Parquet tables of tables.sql as they lie on disk, with rows of older versions among them;
-- raw.<table>_live are the live rows of one of them, under its own columns.

create view raw.live as                -- The live version of every run and of everything it has.
select rid, gen, source, entity, project, run_id, config_gen, summary_gen, metric_gen, history_gen, system_gen,
       files_gen, logs_gen, history_rows, system_rows, deleted_at
from raw.runs_live;

create view raw.merged as              -- Copies of runs that are shown under another one (merged_into), as they are held themselves.
select r.*
from raw.runs r semi join (select rid, max(gen) as gen from raw.runs group by rid) m on m.rid = r.rid and m.gen = r.gen
where r.merged_into is not null;

create view runs as                    -- One row per run: attributes, config and summary as JSON, how complete it is.
select * exclude (gen, config_raw, summary_raw, config_gen, summary_gen, metric_gen, history_gen, system_gen,
                  files_gen, logs_gen)
from raw.runs_live;

create view runs_raw as                -- The same with the documents as they came over the wire.
select * from raw.runs_live;

create view config as                  -- One row per node of a run's config: path is a JSON pointer.
select l.source, l.entity, l.project, l.run_id, c.path, c.type, c.num, c.str, c.rid
from raw.config c join raw.live l on l.rid = c.rid and l.config_gen = c.gen;

create view summary as                 -- One row per node of a run's summary: path is a JSON pointer.
select l.source, l.entity, l.project, l.run_id, c.path, c.type, c.num, c.str, c.rid
from raw.summary c join raw.live l on l.rid = c.rid and l.summary_gen = c.gen;

create view metrics as                 -- One row per key of a run's history: counts by kind, first, last, extremes.
select l.source, l.entity, l.project, l.run_id, c.* exclude (gen)
from raw.metric c join raw.live l on l.rid = c.rid and l.metric_gen = c.gen;

create view history as                 -- One row per logged cell. Order a run's rows by row, not by step: steps can repeat.
select l.source, l.entity, l.project, l.run_id, c.key, c.step, c.row, c.ts, c.v as value,
       case when c.kind = 'string' then try(json_extract_string(c.j, '$')) else c.j end as text,
       c.kind, c.path_id, c.j, c.rid
from raw.history c join raw.live l on l.rid = c.rid and l.history_gen = c.gen;

create view system_metrics as          -- One row per system metric and sample.
select l.source, l.entity, l.project, l.run_id, c.key, c.step, c.row, c.ts, c.v as value,
       case when c.kind = 'string' then try(json_extract_string(c.j, '$')) else c.j end as text,
       c.kind, c.path_id, c.j, c.rid
from raw.system_metrics c join raw.live l on l.rid = c.rid and l.system_gen = c.gen;

create view files as                   -- One row per file of a run.
select l.source, l.entity, l.project, l.run_id, c.* exclude (gen)
from raw.files c join raw.live l on l.rid = c.rid and l.files_gen = c.gen;

create view logs as                    -- One row per console line.
select l.source, l.entity, l.project, l.run_id, c.* exclude (gen)
from raw.logs c join raw.live l on l.rid = c.rid and l.logs_gen = c.gen;

create view raw.typed_cells as         -- Cells of history and nodes of summaries that hold a W&B type: media, tables, histograms, ...
select c.rid, 'history' as stream, c.key, c.step, c.row, c.ts, try(json_extract_string(c.j, '$._type')) as type, c.j
from raw.history c join raw.live l on l.rid = c.rid and l.history_gen = c.gen where c.kind = 'media'
union all
select c.rid, 'summary', replace(replace(replace(substr(c.path, 2), '/', '.'), '~1', '/'), '~0', '~'), null, null, null,
       try(json_extract_string(c.str, '$._type')), c.str
from raw.summary c join raw.live l on l.rid = c.rid and l.summary_gen = c.gen
where c.type = 'object' and contains(c.str, '"_type"') and try(json_extract_string(c.str, '$._type')) is not null;

create view media as                   -- One row per file that a cell of history or summary refers to: images, tables, ... held says whether its bytes are here.
select l.source, l.entity, l.project, l.run_id, c.stream, c.key, c.step, c.row, c.ts, c.type, c.item, c.path,
       coalesce(c.sha256, f.sha256) as sha256, coalesce(c.size, f.size) as size, c.caption, c.artifact_path,
       f.sha256 is not null as held, f.sha256 as blob, c.j, c.rid
from (
  select t.*, i.item, coalesce(t.names[i.item + 1], try(json_extract_string(t.j, '$.path'))) as path,
         coalesce(t.captions[i.item + 1], try(json_extract_string(t.j, '$.caption'))) as caption,
         try(json_extract_string(t.j, '$.sha256')) as sha256, try(cast(t.j->>'$.size' as bigint)) as size,
         coalesce(try(json_extract_string(t.j, '$.artifact_path')), try(json_extract_string(t.j, '$._latest_artifact_path')))
           as artifact_path
  from (
    select *, try(json_extract_string(j, '$.filenames[*]')) as names, try(json_extract_string(j, '$.captions[*]')) as captions
    from raw.typed_cells where type <> 'histogram'
  ) t, unnest(range(greatest(1, len(t.names)))) as i(item)
) c
join raw.live l on l.rid = c.rid
left join (select r.rid, r.name, r.size, r.sha256 from raw.files r join raw.live g on g.rid = r.rid and g.files_gen = r.gen) f
  on f.rid = c.rid and f.name = c.path
where c.path is not null;

create view histograms as              -- One row per bin of a histogram in history or summary.
select l.source, l.entity, l.project, l.run_id, c.stream, c.key, c.step, c.row, c.ts, i.bin,
       coalesce(c.edges[i.bin + 1], c.low + i.bin * c.width) as bin_left,
       coalesce(c.edges[i.bin + 2], c.low + (i.bin + 1) * c.width) as bin_right,
       c.counts[i.bin + 1] as count, c.rid
from (
  select *, try(cast(j->'$.values' as double[])) as counts, try(cast(j->'$.bins' as double[])) as edges,
         try(cast(j->>'$.packedBins.min' as double)) as low, try(cast(j->>'$.packedBins.size' as double)) as width
  from raw.typed_cells where type = 'histogram'
) c
join raw.live l on l.rid = c.rid, unnest(range(len(c.counts))) as i(bin);

create view sweeps as                  -- One row per sweep; its runs are those of `runs` with this sweep.
select * exclude (rid, gen) from raw.sweeps_live;

create view artifact_collections as    -- One row per collection of artifacts.
select * exclude (rid, gen) from raw.artifact_collections_live;

create view artifacts as               -- One row per artifact version, deleted ones included (deleted_at).
select * exclude (rid, gen, entries_gen, uses_gen) from raw.artifacts_live;

create view artifact_entries as        -- One row per entry of an artifact version.
select a.source, a.entity, a.project, a.type, a.collection, a.version, e.* exclude (rid, gen), a.storage_id
from raw.artifact_entries e join raw.artifacts_live a on a.rid = e.rid and a.entries_gen = e.gen;

create view tables as                  -- One row per W&B table: where it was logged, its rows and columns once its bytes are held. Read one as "<name>".
select * from (
  select m.source, m.entity, m.project, m.run_id, m.key, m.step, m.row, null::varchar as collection,
         null::integer as version, m.path, m.blob as sha256, t.row_count, t.fields, t.note,
         'table:' || m.entity || '/' || m.project || '/' || m.run_id || ':' || m.key || coalesce('@' || m.step, '') as name,
         m.rid
  from (select * from media qualify stream = min(stream) over (partition by rid, key)) m
  left join (select distinct * from raw.tables) t on t.rid = m.rid and t.sha256 = m.blob
  where m.path like '%.table.json'
  union all
  select a.source, a.entity, a.project, a.run_id, null, null, null, a.collection, a.version, e.path, e.sha256, t.row_count,
         t.fields, t.note,
         'table:' || a.entity || '/' || a.project || '/' || a.collection || ':v' || a.version || '/' || e.path, e.rid
  from raw.artifact_entries e join raw.artifacts_live a on a.rid = e.rid and a.entries_gen = e.gen
  left join (select distinct * from raw.tables) t on t.rid = e.rid and t.sha256 = e.sha256
  where e.path like '%.table.json' and a.deleted_at is null
);

create view artifact_uses as           -- One row per run that used an artifact version; run_* name the run.
select a.source, a.entity, a.project, a.type, a.collection, a.version, u.entity as run_entity,
       u.project as run_project, u.run_id, u.used_as, a.storage_id
from raw.artifact_uses u join raw.artifacts_live a on a.rid = u.rid and a.uses_gen = u.gen;

create view reports as                 -- One row per report.
select * exclude (rid, gen) from raw.reports_live;

create view projects as                -- One row per project.
select p.* exclude (gen)
from raw.projects p
semi join (select source, entity, project, max(gen) as gen from raw.projects group by source, entity, project) m
  on m.source = p.source and m.entity = p.entity and m.project = p.project and m.gen = p.gen;

create view sync_log as                -- One row per sync that changed something or failed.
select * from raw.sync_log;

create view changes as                 -- What syncs saw change at the source.
select * from raw.changes;

create view quarantine as              -- Runs that keep failing, with their last error.
select * exclude (n) from (
  select *, row_number() over (partition by rid, stage order by failed_at desc, attempts desc) as n from raw.quarantine
) where n = 1 and attempts > 0;
