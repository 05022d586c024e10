/*
 * sequence.c
 *	  nextval and its kin over sequences in storage; CREATE and ALTER SEQUENCE.
 *
 * Drawing numbers is a commit of its own and is not undone by ROLLBACK.  What
 * ALTER SEQUENCE and TRUNCATE RESTART IDENTITY change is undone: they give the
 * sequence a new storage id, whose state is set before anybody else can see it.
 * A backend keeps drawn numbers in its table until the storage id changes.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/sequence.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "commands/tablecmds.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

#include "seqstate.h"
#include "store.h"
#include "utility.h"

typedef struct SeqEntry
{
	Oid			relid;			/* hash key */
	LocalTransactionId lxid;	/* transaction that holds the lock */
	int64		sid;
	bool		stale;			/* sid must be looked up again */
	bool		last_valid;		/* currval is defined */
	int64		last;			/* what currval returns */
	int64		cached;			/* last number drawn; last <> cached: some are left */
	int64		increment;
} SeqEntry;

static HTAB *entries = NULL;
static SeqEntry *last_used = NULL;
static bool last_used_is_local = false;

/* Sequences made by the running ALTER TABLE, in TopTransactionContext. */
static List *created = NIL;

static void
on_relcache_inval(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	SeqEntry   *entry;

	if (entries == NULL)
		return;
	if (OidIsValid(relid))
	{
		entry = hash_search(entries, &relid, HASH_FIND, NULL);
		if (entry)
			entry->stale = true;
		return;
	}
	hash_seq_init(&status, entries);
	while ((entry = hash_seq_search(&status)) != NULL)
		entry->stale = true;
}

static SeqEntry *
entry_of(Oid relid)
{
	SeqEntry   *entry;
	bool		found;

	if (entries == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(SeqEntry)};

		entries = hash_create("meridian sequences", 16, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	entry = hash_search(entries, &relid, HASH_ENTER, &found);
	if (!found)
	{
		memset(entry, 0, sizeof(SeqEntry));
		entry->relid = relid;
		entry->lxid = InvalidLocalTransactionId;
		entry->stale = true;
	}
	return entry;
}

/*
 * Open a sequence, locked until the end of the transaction: ALTER SEQUENCE and
 * DROP wait for those who draw, as in PostgreSQL.  A subtransaction's end must
 * not take the lock away while the entry says it is held.
 */
static Relation
open_locked(Oid relid, SeqEntry *entry)
{
	if (entry->lxid != MyProc->vxid.lxid)
	{
		ResourceOwner owner = CurrentResourceOwner;

		CurrentResourceOwner = TopTransactionResourceOwner;
		LockRelationOid(relid, RowExclusiveLock);
		CurrentResourceOwner = owner;
		entry->lxid = MyProc->vxid.lxid;
	}
	return sequence_open(relid, NoLock);
}

static SeqEntry *
refresh(SeqEntry *entry)
{
	if (entry->stale)
	{
		int64		sid = mer_relmap_sid(entry->relid, false);

		if (sid != entry->sid)
			entry->cached = entry->last;
		entry->sid = sid;
		entry->stale = false;
	}
	return entry;
}

static void
check_acl(Relation seq, AclMode mode)
{
	if (pg_class_aclcheck(RelationGetRelid(seq), GetUserId(), mode) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for sequence %s", RelationGetRelationName(seq))));
}

static bool
is_temp(Oid relid)
{
	return get_rel_persistence(relid) == RELPERSISTENCE_TEMP;
}

static int64
next_value(Oid relid, bool check_permission)
{
	SeqEntry   *entry = entry_of(relid);
	Relation	seq = open_locked(relid, entry);
	FormData_pg_sequence params;
	int64		first,
				last;

	if (check_permission)
		check_acl(seq, ACL_USAGE | ACL_UPDATE);
	PreventCommandIfReadOnly("nextval()");
	PreventCommandIfParallelMode("nextval()");
	refresh(entry);
	if (entry->last != entry->cached)
		entry->last += entry->increment;
	else
	{
		mer_seq_parameters(relid, &params);
		mer_seq_draw(entry->sid, RelationGetRelationName(seq), &params, &first, &last);
		entry->increment = params.seqincrement;
		entry->last = first;
		entry->cached = last;
		entry->last_valid = true;
	}
	last_used = entry;
	last_used_is_local = false;
	sequence_close(seq, NoLock);
	return entry->last;
}

PG_FUNCTION_INFO_V1(mer_nextval);

Datum
mer_nextval(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);

	if (is_temp(relid))
	{
		Datum		value = nextval_oid(fcinfo);

		last_used_is_local = true;
		return value;
	}
	PG_RETURN_INT64(next_value(relid, true));
}

PG_FUNCTION_INFO_V1(mer_identity_nextval);

/* The privilege to insert was checked; the sequence's own does not matter. */
Datum
mer_identity_nextval(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(next_value(PG_GETARG_OID(0), false));
}

PG_FUNCTION_INFO_V1(mer_currval);

Datum
mer_currval(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	SeqEntry   *entry;
	Relation	seq;

	if (is_temp(relid))
		return currval_oid(fcinfo);
	entry = entry_of(relid);
	seq = open_locked(relid, entry);
	check_acl(seq, ACL_SELECT | ACL_USAGE);
	if (!entry->last_valid)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("currval of sequence \"%s\" is not yet defined in this session",
						RelationGetRelationName(seq))));
	sequence_close(seq, NoLock);
	PG_RETURN_INT64(entry->last);
}

PG_FUNCTION_INFO_V1(mer_lastval);

Datum
mer_lastval(PG_FUNCTION_ARGS)
{
	Relation	seq;

	if (last_used_is_local)
		return lastval(fcinfo);
	if (last_used == NULL ||
		!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(last_used->relid)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("lastval is not yet defined in this session")));
	seq = open_locked(last_used->relid, last_used);
	check_acl(seq, ACL_SELECT | ACL_USAGE);
	sequence_close(seq, NoLock);
	PG_RETURN_INT64(last_used->last);
}

static Datum
set_value(Oid relid, int64 value, bool is_called)
{
	SeqEntry   *entry = entry_of(relid);
	Relation	seq = open_locked(relid, entry);
	FormData_pg_sequence params;

	check_acl(seq, ACL_UPDATE);
	PreventCommandIfReadOnly("setval()");
	PreventCommandIfParallelMode("setval()");
	mer_seq_parameters(relid, &params);
	if (value < params.seqmin || value > params.seqmax)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("setval: value %" PRId64 " is out of bounds for sequence \"%s\" (%" PRId64 "..%" PRId64 ")",
						value, RelationGetRelationName(seq), params.seqmin, params.seqmax)));
	refresh(entry);
	mer_seq_set(entry->sid, value, is_called);
	if (is_called)
	{
		entry->last = value;
		entry->last_valid = true;
	}
	entry->cached = entry->last;
	sequence_close(seq, NoLock);
	PG_RETURN_INT64(value);
}

PG_FUNCTION_INFO_V1(mer_setval);

Datum
mer_setval(PG_FUNCTION_ARGS)
{
	if (is_temp(PG_GETARG_OID(0)))
		return setval_oid(fcinfo);
	return set_value(PG_GETARG_OID(0), PG_GETARG_INT64(1), true);
}

PG_FUNCTION_INFO_V1(mer_setval3);

Datum
mer_setval3(PG_FUNCTION_ARGS)
{
	if (is_temp(PG_GETARG_OID(0)))
		return setval3_oid(fcinfo);
	return set_value(PG_GETARG_OID(0), PG_GETARG_INT64(1), PG_GETARG_BOOL(2));
}

/* State for catalog functions: false where the caller may not look. */
static bool
visible_state(Oid relid, AclMode mode, int64 *last, bool *is_called)
{
	Relation	seq = try_relation_open(relid, AccessShareLock);
	bool		visible;

	if (seq == NULL)
		return false;
	visible = seq->rd_rel->relkind == RELKIND_SEQUENCE && !RELATION_IS_OTHER_TEMP(seq) &&
		pg_class_aclcheck(relid, GetUserId(), mode) == ACLCHECK_OK;
	if (visible)
		mer_seq_state(seq, last, is_called);
	relation_close(seq, AccessShareLock);
	return visible;
}

PG_FUNCTION_INFO_V1(mer_sequence_last_value);

Datum
mer_sequence_last_value(PG_FUNCTION_ARGS)
{
	int64		last;
	bool		is_called;

	if (!visible_state(PG_GETARG_OID(0), ACL_SELECT | ACL_USAGE, &last, &is_called) || !is_called)
		PG_RETURN_NULL();
	PG_RETURN_INT64(last);
}

PG_FUNCTION_INFO_V1(mer_get_sequence_data);

Datum
mer_get_sequence_data(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[2] = {0, 0};
	bool		nulls[2] = {true, true};
	int64		last;
	bool		is_called;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (visible_state(PG_GETARG_OID(0), ACL_SELECT, &last, &is_called))
	{
		values[0] = Int64GetDatum(last);
		values[1] = BoolGetDatum(is_called);
		nulls[0] = nulls[1] = false;
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* ---------- DDL ---------- */

/* The sequence, or InvalidOid if the name is nothing of ours. */
static Oid
stored_sequence(RangeVar *name)
{
	Oid			relid = RangeVarGetRelid(name, NoLock, true);

	if (!OidIsValid(relid) || get_rel_relkind(relid) != RELKIND_SEQUENCE || is_temp(relid))
		return InvalidOid;
	return relid;
}

void
mer_sequence_created(RangeVar *name)
{
	Oid			relid = stored_sequence(name);
	Relation	seq;
	MemoryContext old;

	/* IF NOT EXISTS may have found one. */
	if (!OidIsValid(relid) || mer_relmap_sid(relid, true) != 0)
		return;
	seq = sequence_open(relid, NoLock);
	(void) mer_relmap_create(seq, false);
	sequence_close(seq, NoLock);

	old = MemoryContextSwitchTo(TopTransactionContext);
	created = list_append_unique_oid(created, relid);
	MemoryContextSwitchTo(old);
}

/* OWNED BY alone leaves the state alone. */
static bool
touches_state(const AlterSeqStmt *stmt)
{
	foreach_node(DefElem, option, stmt->options)
	{
		if (strcmp(option->defname, "owned_by") != 0)
			return true;
	}
	return false;
}

/* Bring the mirror up to date, under the lock that ALTER SEQUENCE takes. */
void
mer_sequence_before_alter(AlterSeqStmt *stmt)
{
	Oid			relid;
	int64		last;
	bool		is_called;

	if (XactReadOnly || !touches_state(stmt) || !OidIsValid(stored_sequence(stmt->sequence)))
		return;
	relid = RangeVarGetRelidExtended(stmt->sequence, ShareRowExclusiveLock, RVR_MISSING_OK,
									 RangeVarCallbackOwnsRelation, NULL);
	if (OidIsValid(relid) && mer_seq_peek(mer_relmap_sid(relid, false), &last, &is_called))
		mer_seq_local_set(relid, last, is_called);
}

/* A new storage id with this state; the old one goes if the transaction commits. */
static void
restart(Oid relid, int64 last, bool is_called)
{
	Relation	seq = sequence_open(relid, NoLock);

	mer_seq_set(mer_relmap_recreate(seq), last, is_called);
	CacheInvalidateRelcache(seq);
	sequence_close(seq, NoLock);
}

void
mer_sequence_after_alter(AlterSeqStmt *stmt)
{
	Oid			relid = stored_sequence(stmt->sequence);
	Relation	seq;
	int64		last;
	bool		is_called;

	if (!OidIsValid(relid) || !touches_state(stmt))
		return;
	seq = sequence_open(relid, NoLock);
	mer_seq_local_get(seq, &last, &is_called);
	sequence_close(seq, NoLock);
	restart(relid, last, is_called);
}

/* Numbers that PostgreSQL's own nextval drew count as drawn. */
static void
adopt_local(Oid relid)
{
	Relation	seq = sequence_open(relid, NoLock);
	int64		last;
	bool		is_called;

	mer_seq_local_get(seq, &last, &is_called);
	sequence_close(seq, NoLock);
	if (is_called)
		mer_seq_set(mer_relmap_sid(relid, false), last, true);
}

/*
 * ADD COLUMN of an identity column numbers the rows that are there through
 * PostgreSQL's own nextval: what its new sequence has used is adopted.
 */
void
mer_sequence_adopt_local(RangeVar *table)
{
	List	   *fresh = created;
	Oid			relid;

	created = NIL;
	if (fresh == NIL)
		return;
	relid = RangeVarGetRelid(table, NoLock, true);
	if (OidIsValid(relid))
	{
		foreach_oid(seq, getOwnedSequences(relid))
		{
			if (list_member_oid(fresh, seq))
				adopt_local(seq);
		}
	}
	list_free(fresh);
}

void
mer_sequence_restart_owned(List *table_oids)
{
	foreach_oid(table, table_oids)
	{
		foreach_oid(seq, getOwnedSequences(table))
		{
			FormData_pg_sequence params;

			if (is_temp(seq))
				continue;
			mer_seq_parameters(seq, &params);
			restart(seq, params.seqstart, false);
		}
	}
}

void
mer_sequence_discard(void)
{
	if (entries)
		hash_destroy(entries);
	entries = NULL;
	last_used = NULL;
	last_used_is_local = false;
}

static void
at_xact(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
		created = NIL;
}

void
mer_sequence_init(void)
{
	CacheRegisterRelcacheCallback(on_relcache_inval, (Datum) 0);
	RegisterXactCallback(at_xact, NULL);
	mer_seqplan_init();
}
