/*
 * relmap.c
 *	  Which storage id a relation has, and how its rows or entries are keyed.
 *
 * The map is the catalog table meridian.relation.  Changes made by this
 * transaction lie in a small overlay and reach the table just before commit,
 * so that creating a relation needs no command boundary of its own.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_opclass.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "jobs.h"
#include "store.h"

#define Natts_relation 3
#define Anum_relid 1
#define Anum_sid 2
#define Anum_organised 3

#define SID_LEASE 16

typedef struct MapChange
{
	Oid			relid;
	int64		sid;			/* 0: dropped */
	bool		organised;
} MapChange;

static MapChange *changes;
static int	nchanges;
static int	max_changes;


static int64 sid_next;
static int64 sid_end;

/* ---------- the overlay ---------- */

int
mer_relmap_mark(void)
{
	return nchanges;
}

void
mer_relmap_undo(int mark)
{
	if (nchanges != mark)
		mer_reldesc_invalidate();
	nchanges = mark;
}

static void
change_push(Oid relid, int64 sid, bool organised)
{
	mer_txn_start();
	if (nchanges == max_changes)
	{
		max_changes = max_changes ? max_changes * 2 : 16;
		if (changes)
			changes = repalloc(changes, max_changes * sizeof(MapChange));
		else
			changes = MemoryContextAlloc(TopMemoryContext, max_changes * sizeof(MapChange));
	}
	changes[nchanges].relid = relid;
	changes[nchanges].sid = sid;
	changes[nchanges].organised = organised;
	nchanges++;
	mer_reldesc_invalidate();
}

static MapChange *
change_find(Oid relid)
{
	for (int i = nchanges - 1; i >= 0; i--)
		if (changes[i].relid == relid)
			return &changes[i];
	return NULL;
}

/* ---------- the table ---------- */

static Oid
map_table(void)
{
	Oid			nsp = get_namespace_oid("meridian", true);
	Oid			relid = OidIsValid(nsp) ? get_relname_relid("relation", nsp) : InvalidOid;

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("meridian.relation does not exist"),
				 errhint("This database was not set up as a Meridian database.")));
	return relid;
}

static HeapTuple
map_lookup(Relation map, Oid relid)
{
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *indexes = RelationGetIndexList(map);

	ScanKeyInit(&key, Anum_relid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relid));
	scan = systable_beginscan(map, indexes ? linitial_oid(indexes) : InvalidOid,
							  indexes != NIL, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (tuple)
		tuple = heap_copytuple(tuple);
	systable_endscan(scan);
	return tuple;
}

bool
mer_relmap_get(Oid relid, int64 *sid, bool *organised)
{
	MapChange  *change = change_find(relid);
	Relation	map;
	HeapTuple	tuple;
	bool		isnull;

	if (change)
	{
		*sid = change->sid;
		*organised = change->organised;
		return change->sid != 0;
	}
	map = table_open(map_table(), AccessShareLock);
	tuple = map_lookup(map, relid);
	if (tuple)
	{
		*sid = DatumGetInt64(heap_getattr(tuple, Anum_sid, RelationGetDescr(map), &isnull));
		*organised = DatumGetBool(heap_getattr(tuple, Anum_organised,
											   RelationGetDescr(map), &isnull));
		heap_freetuple(tuple);
	}
	table_close(map, AccessShareLock);
	return tuple != NULL;
}

static void
map_put(Relation map, const MapChange *change)
{
	HeapTuple	old = map_lookup(map, change->relid);
	Datum		values[Natts_relation];
	bool		nulls[Natts_relation] = {false, false, false};
	HeapTuple	new;

	if (change->sid == 0)
	{
		if (old)
			CatalogTupleDelete(map, &old->t_self);
		return;
	}
	values[Anum_relid - 1] = ObjectIdGetDatum(change->relid);
	values[Anum_sid - 1] = Int64GetDatum(change->sid);
	values[Anum_organised - 1] = BoolGetDatum(change->organised);
	new = heap_form_tuple(RelationGetDescr(map), values, nulls);
	if (old)
		CatalogTupleUpdate(map, &old->t_self, new);
	else
		CatalogTupleInsert(map, new);
	heap_freetuple(new);
}

/* Write the last state of every changed relation into the catalog table. */
void
mer_relmap_flush(void)
{
	Relation	map;

	if (nchanges == 0)
		return;
	map = table_open(map_table(), RowExclusiveLock);
	for (int i = 0; i < nchanges; i++)
		if (change_find(changes[i].relid) == &changes[i])
			map_put(map, &changes[i]);
	table_close(map, NoLock);
	CommandCounterIncrement();
}

void
mer_relmap_end(void)
{
	if (nchanges > 0)
		mer_reldesc_invalidate();
	nchanges = 0;
}

/* ---------- create, recreate, drop ---------- */

static int64
new_sid(void)
{
	if (sid_next >= sid_end)
	{
		int			n = mer_lease(MER_LEASE_SID, SID_LEASE, &sid_next);

		sid_end = sid_next + n;
	}
	return sid_next++;
}

static void
put_columns(StringInfo op, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	int			n = 0;

	for (int i = 0; i < desc->natts; i++)
		n += !TupleDescAttr(desc, i)->attisdropped;
	mp_put_array(op, n);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		MerColumn	col;

		if (att->attisdropped)
			continue;
		mer_column_init(&col, att);
		mp_put_array(op, 2);
		mp_put_int(op, i + 1);
		mp_put_int(op, col.cls);
	}
}

static void
put_index_columns(StringInfo op, Relation rel, MerRel *index)
{
	AttrNumber	attnums[INDEX_MAX_KEYS + 1];
	int			n = mer_index_payload_attnums(index, attnums);

	mp_put_array(op, n);
	for (int i = 0; i < n; i++)
	{
		MerColumn	col;

		mp_put_array(op, 2);
		mp_put_int(op, attnums[i]);
		if (attnums[i] == 0)
			mp_put_int(op, MER_BYTES);
		else
		{
			mer_column_init(&col, TupleDescAttr(RelationGetDescr(rel), attnums[i] - 1));
			mp_put_int(op, col.cls);
		}
	}
}

static void
schema_create(Relation rel, int64 sid)
{
	StringInfoData op;
	bool		is_index = rel->rd_rel->relkind == RELKIND_INDEX;
	bool		is_sequence = rel->rd_rel->relkind == RELKIND_SEQUENCE;

	initStringInfo(&op);
	mp_put_array(&op, is_index ? 6 : 5);
	mp_put_int(&op, 6);
	mp_put_int(&op, sid);
	mp_put_int(&op, is_sequence ? 2 : is_index ? 1 : 0);
	if (is_sequence)
	{
		mp_put_array(&op, 0);
		mp_put_int(&op, 0);
	}
	else if (is_index)
	{
		MerRel	   *index = mer_reldesc_build(rel, sid, false);

		put_index_columns(&op, rel, index);
		mp_put_int(&op, index->table_sid);
		/* COMPLETE: verify then looks for rows without an entry.  BUILDING: not yet. */
		mp_put_int(&op, mer_job_building ? 2 : RelationGetIndexPredicate(rel) == NIL ? 1 : 0);
	}
	else
	{
		put_columns(&op, rel);
		mp_put_int(&op, 0);
	}
	mer_txn_schema_op(op.data, op.len);
	pfree(op.data);
}

static void
schema_drop(int64 sid)
{
	StringInfoData op;

	initStringInfo(&op);
	mp_put_array(&op, 2);
	mp_put_int(&op, 8);
	mp_put_int(&op, sid);
	mer_txn_schema_op(op.data, op.len);
	pfree(op.data);
}

int64
mer_relmap_create(Relation rel, bool organised)
{
	int64		sid = new_sid();

	change_push(RelationGetRelid(rel), sid, organised);
	schema_create(rel, sid);
	return sid;
}

/* A new, empty storage id in the place of the present one, if there is one. */
int64
mer_relmap_recreate(Relation rel)
{
	int64		sid = 0;
	bool		organised = false;

	if (mer_relmap_get(RelationGetRelid(rel), &sid, &organised))
		schema_drop(sid);
	return mer_relmap_create(rel, organised);
}

int64
mer_relmap_sid(Oid relid, bool missing_ok)
{
	int64		sid;
	bool		organised;

	if (mer_relmap_get(relid, &sid, &organised))
		return sid;
	if (!missing_ok)
		elog(ERROR, "meridian: relation %u has no storage id", relid);
	return 0;
}

bool
mer_relmap_organised(Oid relid)
{
	int64		sid;
	bool		organised;

	return mer_relmap_get(relid, &sid, &organised) && organised;
}

void
mer_relmap_drop(Oid relid)
{
	int64		sid;
	bool		organised;

	if (!mer_relmap_get(relid, &sid, &organised))
		return;
	schema_drop(sid);
	change_push(relid, 0, false);
}

void
mer_relmap_organise(Relation table, Relation pkey)
{
	change_push(RelationGetRelid(table), mer_relmap_sid(RelationGetRelid(table), false), true);
	CacheInvalidateRelcache(table);
}

/* The rows go under hidden ids from here on; there are none yet. */
void
mer_relmap_unorganise(Relation table)
{
	change_push(RelationGetRelid(table), mer_relmap_sid(RelationGetRelid(table), false), false);
	CacheInvalidateRelcache(table);
}

/*
 * Users of the relation shall need a newer catalog, although it stays as it is:
 * what its writers have to do has changed.
 */
void
mer_relmap_touch(Oid relid)
{
	int64		sid;
	bool		organised;

	if (!mer_relmap_get(relid, &sid, &organised))
		return;
	change_push(relid, sid, organised);
	CacheInvalidateRelcacheByRelid(relid);
}

/* A relation takes over what another one has stored; its own goes. */
void
mer_relmap_adopt(Oid relid, Oid from, bool organised)
{
	int64		sid = mer_relmap_sid(from, false);

	mer_relmap_drop(relid);
	change_push(relid, sid, organised);
	change_push(from, 0, false);
}

/* A rewrite has filled one relation with the rows of the other. */
void
mer_relmap_swap(Oid a, Oid b)
{
	int64		sid_a,
				sid_b;
	bool		organised_a,
				organised_b;

	if (!mer_relmap_get(a, &sid_a, &organised_a) || !mer_relmap_get(b, &sid_b, &organised_b))
		elog(ERROR, "meridian: relation %u or %u has no storage id", a, b);
	change_push(a, sid_b, organised_b);
	change_push(b, sid_a, organised_a);
}
