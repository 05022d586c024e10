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
CREATE EXTENSION meridian;

SELECT meridian.next_oid(15600);

/* ---------- built-in functions that give way to ours ---------- */

/*
 * The function manager calls a built-in by its number without a look at pg_proc,
 * so replacing its body has no effect.  The built-in moves to schema meridian,
 * where users cannot name it, and ours takes its name.  First come the functions
 * over sequences, which live in storage, and those whose effect would stay in
 * files of one instance, which are refused; then advisory locks, NOTIFY
 * and snapshots of local transaction ids.
 */
DO $$
DECLARE
	sequences_view text := pg_catalog.pg_get_viewdef('pg_catalog.pg_sequences'::regclass);
	f record;
BEGIN
	FOR f IN
		SELECT p.oid, p.proname, pg_catalog.pg_get_function_arguments(p.oid) AS args,
			pg_catalog.pg_get_function_result(p.oid) AS result, p.proisstrict AND r.ours IS NOT NULL AS is_strict,
			COALESCE(r.ours, 'mer_refused_function') AS body
		FROM pg_catalog.pg_proc p
		JOIN (VALUES
			(1, 'nextval', NULL, 'mer_nextval'),
			(1, 'currval', NULL, 'mer_currval'),
			(1, 'lastval', NULL, 'mer_lastval'),
			(1, 'setval', 2, 'mer_setval'),
			(1, 'setval', 3, 'mer_setval3'),
			(1, 'pg_sequence_last_value', NULL, 'mer_sequence_last_value'),
			(1, 'pg_get_sequence_data', NULL, 'mer_get_sequence_data'),
			(1, 'lo_creat', NULL, NULL),
			(1, 'lo_create', NULL, NULL),
			(1, 'lo_from_bytea', NULL, NULL),
			(1, 'lo_import', NULL, NULL),
			(1, 'lo_open', NULL, NULL),
			(1, 'lo_put', NULL, NULL),
			(1, 'pg_export_snapshot', NULL, NULL),
			(1, 'pg_create_physical_replication_slot', NULL, NULL),
			(1, 'pg_create_logical_replication_slot', NULL, NULL),
			(1, 'pg_copy_physical_replication_slot', NULL, NULL),
			(1, 'pg_copy_logical_replication_slot', NULL, NULL),
			(1, 'pg_logical_emit_message', NULL, NULL),
			(1, 'pg_replication_origin_create', NULL, NULL),
			(2, 'pg_advisory_lock', NULL, 'mer_advisory_lock'),
			(2, 'pg_advisory_lock_shared', NULL, 'mer_advisory_lock_shared'),
			(2, 'pg_advisory_xact_lock', NULL, 'mer_advisory_xact_lock'),
			(2, 'pg_advisory_xact_lock_shared', NULL, 'mer_advisory_xact_lock_shared'),
			(2, 'pg_try_advisory_lock', NULL, 'mer_advisory_try_lock'),
			(2, 'pg_try_advisory_lock_shared', NULL, 'mer_advisory_try_lock_shared'),
			(2, 'pg_try_advisory_xact_lock', NULL, 'mer_advisory_try_xact_lock'),
			(2, 'pg_try_advisory_xact_lock_shared', NULL, 'mer_advisory_try_xact_lock_shared'),
			(2, 'pg_advisory_unlock', NULL, 'mer_advisory_unlock'),
			(2, 'pg_advisory_unlock_shared', NULL, 'mer_advisory_unlock_shared'),
			(2, 'pg_advisory_unlock_all', NULL, 'mer_advisory_unlock_everything'),
			(3, 'pg_notify', NULL, 'mer_pg_notify'),
			(3, 'pg_current_snapshot', NULL, NULL),
			(3, 'txid_current_snapshot', NULL, NULL)
		) AS r (batch, name, nargs, ours) ON r.name = p.proname AND (r.nargs IS NULL OR r.nargs = p.pronargs)
		WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prolang = 12
		ORDER BY r.batch, p.oid
	LOOP
		UPDATE pg_catalog.pg_proc SET pronamespace = 'meridian'::regnamespace WHERE oid = f.oid;
		EXECUTE pg_catalog.format('ALTER EXTENSION meridian ADD FUNCTION %s', f.oid::regprocedure);
		EXECUTE pg_catalog.format(
			'CREATE FUNCTION pg_catalog.%I(%s) RETURNS %s LANGUAGE C VOLATILE %s PARALLEL UNSAFE AS %L, %L',
			f.proname, f.args, f.result, CASE WHEN f.is_strict THEN 'STRICT' ELSE '' END, 'meridian', f.body);
	END LOOP;
	-- The view was bound to the built-in by number.
	EXECUTE 'CREATE OR REPLACE VIEW pg_catalog.pg_sequences AS ' || sequences_view;
END
$$;

/* ---------- users, database, schemas ---------- */

SELECT meridian.next_oid(16300);

CREATE ROLE admin LOGIN CREATEROLE;

GRANT pg_read_all_stats, pg_signal_backend TO admin;

ALTER DATABASE postgres OWNER TO admin;

-- Of tables that are being rewritten (src/rewrite.h); pg_dump leaves such names out.
CREATE SCHEMA pg_meridian;

ALTER DATABASE postgres SET default_table_access_method = meridian;

-- A cluster has one database, and each file fewer makes an instance start sooner.
UPDATE pg_catalog.pg_database SET datistemplate = false WHERE datname LIKE 'template_';

DROP DATABASE template1;

DROP DATABASE template0;

CHECKPOINT;

