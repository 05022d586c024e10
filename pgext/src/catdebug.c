/*
 * catdebug.c
 *	  Capture and apply of catalog deltas by hand, for tests without a gateway.
 *	  Only sql/meridian_debug.sql declares these.
 */
#include "reach.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "varatt.h"

PG_FUNCTION_INFO_V1(mer_debug_capture);
PG_FUNCTION_INFO_V1(mer_debug_apply);
PG_FUNCTION_INFO_V1(mer_debug_reach);

/* capture(): the delta of this transaction so far, NULL if there is none */
Datum
mer_debug_capture(PG_FUNCTION_ARGS)
{
	StringInfoData buf;
	MerReach	reach;
	bool		secret;
	bytea	   *result;

	initStringInfo(&buf);
	if (!mer_catalog_capture(&buf, &reach, &secret))
		PG_RETURN_NULL();
	result = palloc(VARHDRSZ + buf.len);
	SET_VARSIZE(result, VARHDRSZ + buf.len);
	memcpy(VARDATA(result), buf.data, buf.len);
	PG_RETURN_BYTEA_P(result);
}

/* reach(): whom that delta concerns, encoded */
Datum
mer_debug_reach(PG_FUNCTION_ARGS)
{
	StringInfoData buf;
	MerReach	reach;
	bool		secret;
	bytea	   *result;

	initStringInfo(&buf);
	if (!mer_catalog_capture(&buf, &reach, &secret))
		PG_RETURN_NULL();
	resetStringInfo(&buf);
	mer_reach_put(&reach, &buf);
	result = palloc(VARHDRSZ + buf.len);
	SET_VARSIZE(result, VARHDRSZ + buf.len);
	memcpy(VARDATA(result), buf.data, buf.len);
	PG_RETURN_BYTEA_P(result);
}

/* apply(delta) */
Datum
mer_debug_apply(PG_FUNCTION_ARGS)
{
	bytea	   *delta = PG_GETARG_BYTEA_PP(0);

	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to apply a catalog delta")));
	mer_catalog_apply(VARDATA_ANY(delta), (uint32) VARSIZE_ANY_EXHDR(delta), MER_REACH_GLOBAL);
	PG_RETURN_VOID();
}
