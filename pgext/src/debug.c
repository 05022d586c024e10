/*
 * debug.c
 *	  Functions that show keys and row values to tests.  No SQL script of a
 *	  cluster declares them; sql/meridian_debug.sql does, for tests.
 */
#include "keyenc.h"

#include "access/tupmacs.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "varatt.h"

PG_FUNCTION_INFO_V1(mer_debug_key);
PG_FUNCTION_INFO_V1(mer_debug_key_as);
PG_FUNCTION_INFO_V1(mer_debug_key_roundtrips);
PG_FUNCTION_INFO_V1(mer_debug_value_roundtrips);
PG_FUNCTION_INFO_V1(mer_debug_value);
PG_FUNCTION_INFO_V1(mer_debug_class);
PG_FUNCTION_INFO_V1(mer_debug_order_bytes);
PG_FUNCTION_INFO_V1(mer_debug_key_supported);
PG_FUNCTION_INFO_V1(mer_debug_conflict_hash);
PG_FUNCTION_INFO_V1(mer_debug_lease);
PG_FUNCTION_INFO_V1(mer_debug_limit);
PG_FUNCTION_INFO_V1(mer_debug_profile);

static Datum
as_bytea(StringInfo buf)
{
	bytea	   *result = palloc(VARHDRSZ + buf->len);

	SET_VARSIZE(result, VARHDRSZ + buf->len);
	memcpy(VARDATA(result), buf->data, buf->len);
	return PointerGetDatum(result);
}

static Oid
argument_type(FunctionCallInfo fcinfo, int n)
{
	Oid			typid = get_fn_expr_argtype(fcinfo->flinfo, n);

	if (!OidIsValid(typid))
		elog(ERROR, "type of argument %d is not known", n);
	return getBaseType(typid);
}

static MerKeyColumn
key_column(FunctionCallInfo fcinfo, Oid typid, bool desc, bool nulls_first)
{
	return (MerKeyColumn)
	{
		.attnum = 1,.typid = typid,.collation = PG_GET_COLLATION(),
			.desc = desc,.nulls_first = nulls_first
	};
}

static MerColumn
value_column(FunctionCallInfo fcinfo, Oid typid)
{
	MerColumn	col = {.attnum = 1,.typid = typid};

	get_typlenbyval(typid, &col.typlen, &col.typbyval);
	col.cls = mer_column_class(typid, PG_GET_COLLATION());
	return col;
}

/* key(value, descending, nulls_first) */
Datum
mer_debug_key(PG_FUNCTION_ARGS)
{
	MerKeyColumn col = key_column(fcinfo, argument_type(fcinfo, 0),
								  PG_GETARG_BOOL(1), PG_GETARG_BOOL(2));
	StringInfoData buf;

	initStringInfo(&buf);
	mer_key_put(&buf, &col, PG_GETARG_DATUM(0), PG_ARGISNULL(0));
	PG_RETURN_DATUM(as_bytea(&buf));
}

/* key_as(type of the column, value): the bound, or NULL if it cannot be one */
Datum
mer_debug_key_as(PG_FUNCTION_ARGS)
{
	MerKeyColumn col = key_column(fcinfo, PG_GETARG_OID(0), false, false);
	StringInfoData buf;

	initStringInfo(&buf);
	if (!mer_key_put_other(&buf, &col, argument_type(fcinfo, 1), PG_GETARG_DATUM(1)))
		PG_RETURN_NULL();
	PG_RETURN_DATUM(as_bytea(&buf));
}

/* key_roundtrips(value, descending): NULL if a key of this type loses something */
Datum
mer_debug_key_roundtrips(PG_FUNCTION_ARGS)
{
	Oid			typid = argument_type(fcinfo, 0);
	MerKeyColumn col = key_column(fcinfo, typid, PG_GETARG_BOOL(1), false);
	MerColumn	value = value_column(fcinfo, typid);
	StringInfoData buf;
	const char *p;
	bool		isnull;
	Datum		back;

	if (!mer_key_lossless(&col))
		PG_RETURN_NULL();
	initStringInfo(&buf);
	mer_key_put(&buf, &col, PG_GETARG_DATUM(0), PG_ARGISNULL(0));
	p = buf.data;
	back = mer_key_get(&p, buf.data + buf.len, &col, &isnull);
	if (p != buf.data + buf.len || isnull != PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	PG_RETURN_BOOL(isnull || datum_image_eq(back, PG_GETARG_DATUM(0), value.typbyval, value.typlen));
}

/* value(value): as a row holds it, in msgpack */
Datum
mer_debug_value(PG_FUNCTION_ARGS)
{
	MerColumn	col = value_column(fcinfo, argument_type(fcinfo, 0));
	StringInfoData buf;

	initStringInfo(&buf);
	mer_value_put(&buf, &col, PG_GETARG_DATUM(0), PG_ARGISNULL(0));
	PG_RETURN_DATUM(as_bytea(&buf));
}

/* value_roundtrips(value): bit for bit */
Datum
mer_debug_value_roundtrips(PG_FUNCTION_ARGS)
{
	MerColumn	col = value_column(fcinfo, argument_type(fcinfo, 0));
	StringInfoData buf;
	MpReader	r;
	bool		isnull;
	Datum		back;

	initStringInfo(&buf);
	mer_value_put(&buf, &col, PG_GETARG_DATUM(0), PG_ARGISNULL(0));
	r.p = buf.data;
	r.end = buf.data + buf.len;
	back = mer_value_get(&r, &col, &isnull);
	if (r.p != r.end || isnull != PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	PG_RETURN_BOOL(isnull || datum_image_eq(back, PG_GETARG_DATUM(0), col.typbyval, col.typlen));
}

Datum
mer_debug_class(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(mer_column_class(argument_type(fcinfo, 0), PG_GET_COLLATION()));
}

Datum
mer_debug_order_bytes(PG_FUNCTION_ARGS)
{
	StringInfoData buf;

	initStringInfo(&buf);
	mer_order_bytes(&buf, argument_type(fcinfo, 0), PG_GETARG_DATUM(0));
	PG_RETURN_DATUM(as_bytea(&buf));
}

Datum
mer_debug_key_supported(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(mer_key_supported(PG_GETARG_OID(0), PG_GETARG_OID(1), PG_GETARG_OID(2)));
}

Datum
mer_debug_conflict_hash(PG_FUNCTION_ARGS)
{
	bytea	   *key = PG_GETARG_BYTEA_PP(2);

	PG_RETURN_INT64((int64) mer_conflict_hash(PG_GETARG_INT64(0), PG_GETARG_INT32(1),
											  VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key)));
}

/* lease(kind, count): the first number */
Datum
mer_debug_lease(PG_FUNCTION_ARGS)
{
	int64		first;

	(void) mer_lease(PG_GETARG_INT32(0), PG_GETARG_INT32(1), &first);
	PG_RETURN_INT64(first);
}

Datum
mer_debug_limit(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(mer_limit(text_to_cstring(PG_GETARG_TEXT_PP(0))));
}

Datum
mer_debug_profile(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(mer_profile()));
}
