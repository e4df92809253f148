-- Version 3: projects that are gone, runs that are held twice.
alter table projects add column missing integer not null default 0;
alter table projects add column deleted_at text;
alter table runs add column origin text;
alter table runs add column merged_into integer;
alter table runs add column judged text;
create index runs_by_id on runs (project, run_id);
create index runs_merged on runs (merged_into) where merged_into is not null;
