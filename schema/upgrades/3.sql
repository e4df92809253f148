-- Version 3: projects that are gone.
alter table projects add column missing integer not null default 0;
alter table projects add column deleted_at text;
