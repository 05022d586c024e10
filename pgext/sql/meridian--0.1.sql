/*
 * The extension's objects: schema meridian, both access methods, and the
 * operator classes of our index access method.
 *
 * Run once, by bootstrap.sql, while the template of a cluster is built in
 * single-user mode.  All object ids lie below 16384 then, so pg_dump and psql
 * treat everything here as part of the system.
 */
\echo Use bootstrap.sql to load this file. \quit

SET LOCAL allow_system_table_mods = on;
SET LOCAL default_table_access_method = heap;

-- Made here, not by CREATE EXTENSION: as members of the extension they are left
-- out by pg_dump.
CREATE SCHEMA meridian;
REVOKE ALL ON SCHEMA meridian FROM PUBLIC;

/*
 * Object ids.  Catalog deltas name objects of the template by them, so what users'
 * objects can refer to must have the same ids in every template: on each machine
 * (initdb takes an id per locale it finds) and in each later version of this file.
 * Append to a section; never move what is there.
 *
 *	15000	schema sys, access methods, operator families and classes
 *	15600	functions that take the names of built-ins (bootstrap.sql)
 *	15900	views of schema sys
 *	16300	roles (bootstrap.sql)
 */
CREATE FUNCTION meridian.next_oid(oid) RETURNS void
	LANGUAGE C VOLATILE STRICT AS 'MODULE_PATHNAME', 'mer_next_oid';

SELECT meridian.next_oid(15000);

CREATE SCHEMA sys;
GRANT USAGE ON SCHEMA sys TO PUBLIC;

/* ---------- local catalog tables: heap, indexed by PostgreSQL's own btree ---------- */

-- One row per stored relation: its storage id now.  TRUNCATE and rewrites change sid.
CREATE TABLE meridian.relation (
	relid oid NOT NULL,
	sid int8 NOT NULL,
	organised bool NOT NULL,
	CONSTRAINT relation_pkey PRIMARY KEY (relid)
) USING heap;

-- Named numbers of this instance, such as the applied catalog version.
CREATE TABLE meridian.state (
	name text COLLATE "C" NOT NULL,
	value int8 NOT NULL,
	CONSTRAINT state_pkey PRIMARY KEY (name)
) USING heap;

REVOKE ALL ON meridian.relation, meridian.state FROM PUBLIC;

/* ---------- access methods: ours takes the name btree ---------- */

CREATE FUNCTION meridian.mer_tableam_handler(internal) RETURNS table_am_handler
	LANGUAGE C AS 'MODULE_PATHNAME', 'mer_tableam_handler';
CREATE FUNCTION meridian.mer_indexam_handler(internal) RETURNS index_am_handler
	LANGUAGE C AS 'MODULE_PATHNAME', 'mer_indexam_handler';

-- Indexes name their access method by default as "btree", in the parser, in
-- pg_get_indexdef and in pg_dump; with the name ours, none of them needs help.
UPDATE pg_catalog.pg_am SET amname = 'heap_btree' WHERE oid = 403;

SELECT meridian.next_oid(15010);

CREATE ACCESS METHOD btree TYPE INDEX HANDLER meridian.mer_indexam_handler;
CREATE ACCESS METHOD meridian TYPE TABLE HANDLER meridian.mer_tableam_handler;

/* ---------- operator families and classes: those of PostgreSQL's btree ---------- */

-- Strategy and support numbers stay, so everything that reasons about ordering
-- and equality through one family finds the same meaning in the other.
DO $$
DECLARE
	mine oid := (SELECT oid FROM pg_catalog.pg_am WHERE amname = 'btree');
BEGIN
	INSERT INTO pg_catalog.pg_opfamily (oid, opfmethod, opfname, opfnamespace, opfowner)
	SELECT pg_nextoid('pg_opfamily', 'oid', 'pg_opfamily_oid_index'), mine, opfname, opfnamespace, opfowner
	FROM pg_catalog.pg_opfamily WHERE opfmethod = 403 ORDER BY oid;

	CREATE TEMP TABLE family_map USING heap ON COMMIT DROP AS
	SELECT o.oid AS old, n.oid AS new
	FROM pg_catalog.pg_opfamily o JOIN pg_catalog.pg_opfamily n
		ON n.opfmethod = mine AND n.opfname = o.opfname AND n.opfnamespace = o.opfnamespace
	WHERE o.opfmethod = 403;

	-- name_ops stores cstring in PostgreSQL's btree; keys of ours have no storage type.
	-- Keys are ordered by bytes, so the pattern classes belong to the plain families:
	-- PostgreSQL finds ranges for LIKE there, but knows families for patterns by number.
	INSERT INTO pg_catalog.pg_opclass
		(oid, opcmethod, opcname, opcnamespace, opcowner, opcfamily, opcintype, opcdefault, opckeytype)
	SELECT pg_nextoid('pg_opclass', 'oid', 'pg_opclass_oid_index'), mine, opcname, opcnamespace, opcowner,
		n.oid, opcintype, opcdefault, 0
	FROM pg_catalog.pg_opclass c JOIN pg_catalog.pg_opfamily o ON o.oid = c.opcfamily
		JOIN pg_catalog.pg_opfamily n ON n.opfmethod = mine AND n.opfnamespace = o.opfnamespace
			AND n.opfname = replace(o.opfname, '_pattern_ops', '_ops')
	WHERE opcmethod = 403 ORDER BY c.oid;

	INSERT INTO pg_catalog.pg_amop
		(oid, amopfamily, amoplefttype, amoprighttype, amopstrategy, amoppurpose, amopopr, amopmethod, amopsortfamily)
	SELECT pg_nextoid('pg_amop', 'oid', 'pg_amop_oid_index'), m.new, amoplefttype, amoprighttype, amopstrategy,
		amoppurpose, amopopr, mine, amopsortfamily
	FROM pg_catalog.pg_amop o JOIN family_map m ON m.old = o.amopfamily ORDER BY o.oid;

	INSERT INTO pg_catalog.pg_amproc (oid, amprocfamily, amproclefttype, amprocrighttype, amprocnum, amproc)
	SELECT pg_nextoid('pg_amproc', 'oid', 'pg_amproc_oid_index'), m.new, amproclefttype, amprocrighttype,
		amprocnum, amproc
	FROM pg_catalog.pg_amproc p JOIN family_map m ON m.old = p.amprocfamily ORDER BY p.oid;

	DROP TABLE family_map;
END
$$;

/* ---------- functions ---------- */

-- Identity columns draw their numbers here.  The second argument is of a type no
-- user can make a value of: only the planner builds this call, for a column the
-- user may insert into.
CREATE FUNCTION meridian.identity_nextval(oid, internal) RETURNS int8
	LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mer_identity_nextval';

-- What SELECT ... FROM a sequence reads; checks the caller's privilege on it.
CREATE FUNCTION meridian.sequence_row(seq regclass, OUT last_value int8, OUT log_cnt int8, OUT is_called bool)
	RETURNS SETOF record
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE ROWS 1 AS 'MODULE_PATHNAME', 'mer_sequence_row';

-- Version of this instance's catalog: the number of the last catalog delta in it.
CREATE FUNCTION meridian.catalog_version() RETURNS int8
	LANGUAGE C STABLE STRICT AS 'MODULE_PATHNAME', 'mer_catalog_version_sql';

-- Apply the delta of the next version; false if it was applied before.
CREATE FUNCTION meridian.apply_catalog_delta(version int8, delta bytea) RETURNS bool
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mer_apply_catalog_delta';

-- Apply up to so many deltas that storage has and this instance lacks; how many were applied.
CREATE FUNCTION meridian.apply_pending_catalog(most int4) RETURNS int4
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mer_apply_pending_catalog';

-- The class of every utility statement, as the extension applies it.
CREATE FUNCTION meridian.utility_classes(OUT node_tag text, OUT statement text, OUT class text, OUT note text)
	RETURNS SETOF record
	LANGUAGE C STABLE STRICT AS 'MODULE_PATHNAME', 'mer_utility_classes';

-- Background jobs (src/jobs.h): all of them, and what their runner calls.
CREATE FUNCTION meridian.jobs(OUT job_id text, OUT status text, OUT job_type text, OUT details text,
		OUT error_detail text, OUT object_name text, OUT phase text, OUT class_id oid, OUT object_id oid,
		OUT table_id oid, OUT owner oid, OUT start_time timestamptz, OUT update_time timestamptz,
		OUT rows_done int8, OUT rows_estimated int8)
	RETURNS SETOF record
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mer_jobs_sql';
CREATE FUNCTION meridian.job_step(id text, budget int4, gate bool, OUT next text, OUT rows_read int8,
	OUT busy_ms float8)
	RETURNS record
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mer_job_step_sql';
CREATE FUNCTION meridian.job_fail(id text, state text, message text, detail text) RETURNS void
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mer_job_fail_sql';
CREATE FUNCTION meridian.jobs_prune() RETURNS int4
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mer_jobs_prune_sql';
REVOKE ALL ON FUNCTION meridian.job_step, meridian.job_fail, meridian.jobs_prune FROM PUBLIC;

-- Tell the sessions of this instance what another one notified.
CREATE FUNCTION meridian.notify_here(channel text, payload text) RETURNS void
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mer_notify_here';

-- End the sessions that listen, because notifications may have been lost; how many there were.
CREATE FUNCTION meridian.end_listeners() RETURNS int8
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mer_end_listeners';

-- All schema changes through a version at once (docs/formats.md, "Catalog image").
CREATE FUNCTION meridian.apply_catalog_image(version int8, image bytea) RETURNS void
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mer_apply_catalog_image';

-- Advisory locks held and waited for in the cluster.
CREATE FUNCTION meridian.advisory_locks(OUT key int8, OUT key1 int4, OUT key2 int4, OUT mode text,
		OUT granted bool, OUT instance int4, OUT pid int4)
	RETURNS SETOF record
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mer_advisory_locks';

-- Take over what ANALYZE found at other instances and wrote after tau `since`, at most so many tables.
CREATE FUNCTION meridian.import_statistics(since int8, most int4, OUT taken int4, OUT remaining int4, OUT tau int8)
	RETURNS record
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mer_import_statistics';

SELECT meridian.next_oid(15900);

CREATE VIEW sys.statements AS
	SELECT node_tag, statement, class, note FROM meridian.utility_classes();
GRANT SELECT ON sys.statements TO PUBLIC;
COMMENT ON VIEW sys.statements IS 'Which statements are supported, and how';

-- Why a job failed is for those who ordered it: it may quote a row.
CREATE VIEW sys.jobs AS
	SELECT job_id, status,
		CASE WHEN pg_catalog.pg_has_role(owner, 'USAGE')
			THEN pg_catalog.concat_ws(': ', details, error_detail) ELSE '' END AS details,
		job_type, class_id, object_id, object_name, start_time, update_time,
		table_id, rows_done, rows_estimated
	FROM meridian.jobs();
GRANT SELECT ON sys.jobs TO PUBLIC;
COMMENT ON VIEW sys.jobs IS 'Background jobs: those that run, and those that ended within a day';

CREATE PROCEDURE sys.wait_for_job(job_id text)
	LANGUAGE C AS 'MODULE_PATHNAME', 'mer_wait_for_job';
CREATE PROCEDURE sys.cancel_job(job_id text)
	LANGUAGE C AS 'MODULE_PATHNAME', 'mer_cancel_job';

CREATE VIEW sys.advisory_locks AS
	SELECT key, key1, key2, mode, granted, instance, pid FROM meridian.advisory_locks();
GRANT SELECT ON sys.advisory_locks TO PUBLIC;
COMMENT ON VIEW sys.advisory_locks IS 'Advisory locks of the cluster: who holds them and who waits';
