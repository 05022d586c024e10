/*
 * seqstate.c
 *	  Where the state of a sequence is, and how it is read and changed.
 *
 * Storage holds it, under the sequence's storage id.  The local file that
 * PostgreSQL keeps for a sequence is a mirror, valid only while ALTER SEQUENCE
 * runs under its lock; temporary sequences have nothing else.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "commands/sequence.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "seqstate.h"

#define REQ_SEQUENCE 12
#define REQ_SETVAL 13
#define REQ_PEEKSEQ 14

void
mer_seq_parameters(Oid relid, FormData_pg_sequence *params)
{
	HeapTuple	tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(relid));

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for sequence %u", relid);
	memcpy(params, GETSTRUCT(tuple), sizeof(FormData_pg_sequence));
	ReleaseSysCache(tuple);
}

void
mer_seq_local_get(Relation seq, int64 *last, bool *is_called)
{
	TupleTableSlot *slot = table_slot_create(seq, NULL);
	TableScanDesc scan = table_beginscan(seq, SnapshotAny, 0, NULL);
	bool		isnull;

	if (!table_scan_getnextslot(scan, ForwardScanDirection, slot))
		elog(ERROR, "sequence \"%s\" has no row", RelationGetRelationName(seq));
	*last = DatumGetInt64(slot_getattr(slot, SEQ_COL_LASTVAL, &isnull));
	*is_called = DatumGetBool(slot_getattr(slot, SEQ_COL_CALLED, &isnull));
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
}

/* PostgreSQL's own setval, whoever owns the sequence. */
void
mer_seq_local_set(Oid relid, int64 last, bool is_called)
{
	Oid			user;
	int			context;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE);
	DirectFunctionCall3(setval3_oid, ObjectIdGetDatum(relid), Int64GetDatum(last),
						BoolGetDatum(is_called));
	SetUserIdAndSecContext(user, context);
}

pg_noreturn static void
limit_reached(const char *name, const FormData_pg_sequence *params)
{
	if (params->seqincrement > 0)
		ereport(ERROR,
				(errcode(ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED),
				 errmsg("nextval: reached maximum value of sequence \"%s\" (%" PRId64 ")",
						name, params->seqmax)));
	ereport(ERROR,
			(errcode(ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED),
			 errmsg("nextval: reached minimum value of sequence \"%s\" (%" PRId64 ")",
					name, params->seqmin)));
}

/* The gateway knows the limit but not the name. */
static MerReply
call_draw(StringInfo request, uint32 id, const char *name, const FormData_pg_sequence *params)
{
	MemoryContext context = CurrentMemoryContext;
	MerReply	reply;

	PG_TRY();
	{
		reply = mer_wire_call(request, id);
	}
	PG_CATCH();
	{
		if (geterrcode() != ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		limit_reached(name, params);
	}
	PG_END_TRY();
	return reply;
}

void
mer_seq_draw(int64 sid, const char *name, const FormData_pg_sequence *params,
			 int64 *first, int64 *last)
{
	StringInfoData request;
	MerReply	reply;
	uint32		id;

	initStringInfo(&request);
	id = mer_wire_begin(&request, REQ_SEQUENCE, 9);
	mp_put_int(&request, sid);
	mp_put_int(&request, params->seqcache);
	mp_put_int(&request, params->seqincrement);
	mp_put_int(&request, params->seqmin);
	mp_put_int(&request, params->seqmax);
	mp_put_int(&request, params->seqstart);
	mp_put_int(&request, params->seqcycle);
	reply = call_draw(&request, id, name, params);
	if (mp_get_array(&reply.body) != 2)
		elog(ERROR, "malformed answer to a sequence request");
	*first = mp_get_int(&reply.body);
	*last = mp_get_int(&reply.body);
	pfree(reply.frame);
	pfree(request.data);
}

void
mer_seq_set(int64 sid, int64 last, bool is_called)
{
	StringInfoData request;
	MerReply	reply;
	uint32		id;

	initStringInfo(&request);
	id = mer_wire_begin(&request, REQ_SETVAL, 5);
	mp_put_int(&request, sid);
	mp_put_int(&request, last);
	mp_put_int(&request, is_called);
	reply = mer_wire_call(&request, id);
	pfree(reply.frame);
	pfree(request.data);
}

/* False: never used since it was created. */
bool
mer_seq_peek(int64 sid, int64 *last, bool *is_called)
{
	StringInfoData request;
	MerReply	reply;
	uint32		id;
	bool		used;

	initStringInfo(&request);
	id = mer_wire_begin(&request, REQ_PEEKSEQ, 3);
	mp_put_int(&request, sid);
	reply = mer_wire_call(&request, id);
	used = mp_get_array(&reply.body) == 2;
	if (used)
	{
		*last = mp_get_int(&reply.body);
		*is_called = mp_get_bool(&reply.body);
	}
	pfree(reply.frame);
	pfree(request.data);
	return used;
}

void
mer_seq_state(Relation seq, int64 *last, bool *is_called)
{
	FormData_pg_sequence params;

	if (seq->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
	{
		mer_seq_local_get(seq, last, is_called);
		return;
	}
	if (mer_seq_peek(mer_relmap_sid(RelationGetRelid(seq), false), last, is_called))
		return;
	mer_seq_parameters(RelationGetRelid(seq), &params);
	*last = params.seqstart;
	*is_called = false;
}
