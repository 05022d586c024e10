/*
 * What makes a freshly initialised PostgreSQL 18 directory a Meridian template.
 *
 * Run it once, right after initdb -U meridian_root, in single-user mode:
 *
 *   postgres --single -j -F -D DIR -c exit_on_error=true \
 *       -c allow_system_table_mods=on -c shared_preload_libraries=meridian \
 *       -c "extension_control_path=...:$system" -c "dynamic_library_path=...:$libdir" \
 *       postgres < bootstrap.sql
 *
 * In single-user mode object ids continue below 16384, where pg_dump and psql
 * take an object for a part of the system.  -j ends a statement at a semicolon
 * and an empty line, and nowhere else.
 */
CREATE SCHEMA meridian;

CREATE EXTENSION meridian SCHEMA meridian;

/* ---------- sequences live in storage ---------- */

CREATE OR REPLACE FUNCTION pg_catalog.nextval(regclass) RETURNS int8
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'meridian', 'mer_nextval';

CREATE OR REPLACE FUNCTION pg_catalog.currval(regclass) RETURNS int8
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'meridian', 'mer_currval';

CREATE OR REPLACE FUNCTION pg_catalog.lastval() RETURNS int8
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'meridian', 'mer_lastval';

CREATE OR REPLACE FUNCTION pg_catalog.setval(regclass, int8) RETURNS int8
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'meridian', 'mer_setval';

CREATE OR REPLACE FUNCTION pg_catalog.setval(regclass, int8, bool) RETURNS int8
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'meridian', 'mer_setval3';

CREATE OR REPLACE FUNCTION pg_catalog.pg_sequence_last_value(regclass) RETURNS int8
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'meridian', 'mer_sequence_last_value';

CREATE OR REPLACE FUNCTION pg_catalog.pg_get_sequence_data(sequence_oid regclass,
		OUT last_value int8, OUT is_called bool) RETURNS record
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'meridian', 'mer_get_sequence_data';

/* ---------- functions whose effect would stay in one instance's files ---------- */

DO $$
DECLARE
	f regprocedure;
BEGIN
	FOR f IN
		SELECT p.oid FROM pg_catalog.pg_proc p
		WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prolang = 12
			AND p.proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_import', 'lo_open', 'lo_put',
				'pg_export_snapshot', 'pg_create_physical_replication_slot',
				'pg_create_logical_replication_slot', 'pg_copy_physical_replication_slot',
				'pg_copy_logical_replication_slot', 'pg_logical_emit_message',
				'pg_replication_origin_create')
	LOOP
		UPDATE pg_catalog.pg_proc SET prolang = 13, prosrc = 'mer_refused_function', probin = 'meridian'
		WHERE oid = f;
	END LOOP;
END
$$;

/* ---------- users, database, schemas ---------- */

CREATE ROLE admin LOGIN CREATEROLE;

GRANT pg_read_all_stats, pg_signal_backend TO admin;

ALTER DATABASE postgres OWNER TO admin;

ALTER DATABASE postgres SET default_table_access_method = meridian;

REVOKE ALL ON SCHEMA meridian FROM PUBLIC;

CREATE SCHEMA sys;

GRANT USAGE ON SCHEMA sys TO PUBLIC;

UPDATE pg_catalog.pg_database SET datallowconn = false WHERE datname = 'template1';

CHECKPOINT;

