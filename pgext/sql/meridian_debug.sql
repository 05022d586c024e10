/*
 * Functions of the extension's library that only tests need (src/debug.c).
 * Run it in any database of a server that has the library loaded.
 */
CREATE SCHEMA meridian_debug;

CREATE FUNCTION meridian_debug.key(value anyelement, descending bool, nulls_first bool) RETURNS bytea
	LANGUAGE C IMMUTABLE AS 'meridian', 'mer_debug_key';

CREATE FUNCTION meridian_debug.key_as(column_type oid, value "any") RETURNS bytea
	LANGUAGE C IMMUTABLE STRICT AS 'meridian', 'mer_debug_key_as';

CREATE FUNCTION meridian_debug.key_roundtrips(value anyelement, descending bool) RETURNS bool
	LANGUAGE C IMMUTABLE AS 'meridian', 'mer_debug_key_roundtrips';

CREATE FUNCTION meridian_debug.value(value anyelement) RETURNS bytea
	LANGUAGE C IMMUTABLE AS 'meridian', 'mer_debug_value';

CREATE FUNCTION meridian_debug.value_roundtrips(value anyelement) RETURNS bool
	LANGUAGE C IMMUTABLE AS 'meridian', 'mer_debug_value_roundtrips';

CREATE FUNCTION meridian_debug.class(value anyelement) RETURNS int4
	LANGUAGE C IMMUTABLE AS 'meridian', 'mer_debug_class';

CREATE FUNCTION meridian_debug.order_bytes(value anyelement) RETURNS bytea
	LANGUAGE C IMMUTABLE STRICT AS 'meridian', 'mer_debug_order_bytes';

CREATE FUNCTION meridian_debug.key_supported(opfamily oid, type oid, collation_id oid) RETURNS bool
	LANGUAGE C STABLE STRICT AS 'meridian', 'mer_debug_key_supported';

CREATE FUNCTION meridian_debug.conflict_hash(sid int8, kind int4, key bytea) RETURNS int8
	LANGUAGE C IMMUTABLE STRICT AS 'meridian', 'mer_debug_conflict_hash';

CREATE FUNCTION meridian_debug.lease(kind int4, count int4) RETURNS int8
	LANGUAGE C VOLATILE STRICT AS 'meridian', 'mer_debug_lease';

CREATE FUNCTION meridian_debug."limit"(name text) RETURNS int8
	LANGUAGE C VOLATILE STRICT AS 'meridian', 'mer_debug_limit';

CREATE FUNCTION meridian_debug.profile() RETURNS text
	LANGUAGE C VOLATILE STRICT AS 'meridian', 'mer_debug_profile';

CREATE FUNCTION meridian_debug.capture() RETURNS bytea
	LANGUAGE C VOLATILE AS 'meridian', 'mer_debug_capture';

CREATE FUNCTION meridian_debug.apply(delta bytea) RETURNS void
	LANGUAGE C VOLATILE STRICT AS 'meridian', 'mer_debug_apply';

CREATE FUNCTION meridian_debug.reach() RETURNS bytea
	LANGUAGE C VOLATILE AS 'meridian', 'mer_debug_reach';
