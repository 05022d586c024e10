/*
 * catapply.c
 *	  Apply a catalog delta in the running transaction.
 *
 * All old versions of the delta's rows go first, then the new ones come, so
 * that no order of renames can collide in a unique index.  What is this
 * instance's own stays: file numbers, transaction id horizons, sizes.  Caches
 * follow by the server's own invalidations, and relations get one each for
 * parts that the server's DDL code announces by hand.
 */
#include "catdelta.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/catversion.h"
#include "catalog/heap.h"
#include "catalog/indexing.h"
#include "catalog/pg_am.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_index.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_rewrite.h"
#include "catalog/pg_shdepend.h"
#include "catalog/pg_statistic_ext.h"
#include "catalog/pg_trigger.h"
#include "catalog/storage.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "coherence.h"
#include "reach.h"
#include "seqfile.h"

typedef struct Row
{
	Datum	   *values;
	bool	   *nulls;
	HeapTuple	old;			/* the version it replaces, or NULL */
} Row;

typedef struct Catalog
{
	const MerCatalogRule *rule;
	Relation	rel;
	MerColumn  *cols;
	int			natts;
	int			nkeys;
	AttrNumber	keys[INDEX_MAX_KEYS];
	Oid			index;			/* of the primary key, or what finds rows without one */
	int			nrows;
	Row		   *rows;
	int			ngone;
	Row		   *gone;
} Catalog;

typedef struct Apply
{
	int			ncatalogs;
	Catalog    *catalogs;
	List	   *affected;		/* relations that need an invalidation */
	List	   *dropped;
	List	   *sequences;		/* with a new, empty file */
	List	   *indexed;		/* relations that got an index */
	List	   *triggered;
	List	   *ruled;
} Apply;

/* ---------- decoding ---------- */

static void
decode_row(Catalog *c, MpReader *r, Row *row)
{
	int			i;

	if ((int) mp_get_array(r) != c->natts)
		mp_malformed("catalog row of another width");
	row->values = palloc(sizeof(Datum) * c->natts);
	row->nulls = palloc(sizeof(bool) * c->natts);
	row->old = NULL;
	for (i = 0; i < c->natts; i++)
		row->values[i] = mer_value_get(r, &c->cols[i], &row->nulls[i]);
}

static void
open_catalog(Catalog *c, Oid id, int natts)
{
	Oid			relid;

	c->rule = mer_catalog_rule(id);
	relid = c->rule != NULL && c->rule->mode == MERCAT_SHIP ? mer_catalog_relid(c->rule) : InvalidOid;
	if (!OidIsValid(relid))
		mp_malformed("unknown catalog in a catalog delta");
	c->rel = table_open(relid, RowExclusiveLock);
	c->natts = RelationGetDescr(c->rel)->natts;
	if (c->natts != natts)
		mp_malformed("catalog of another shape");
	c->cols = mer_catalog_columns(RelationGetDescr(c->rel));
	c->nkeys = mer_catalog_key(c->rel, c->keys, &c->index);
	if (relid == DependRelationId)
		c->index = DependDependerIndexId;
	else if (relid == SharedDependRelationId)
		c->index = SharedDependDependerIndexId;
}

static void
decode_catalog(Catalog *c, MpReader *r)
{
	Oid			id;
	int			i;

	if (mp_get_array(r) != 4)
		mp_malformed("catalog entry of another length");
	id = (Oid) mp_get_int(r);
	open_catalog(c, id, (int) mp_get_int(r));
	c->nrows = (int) mp_get_array(r);
	c->rows = palloc_array(Row, c->nrows + 1);
	for (i = 0; i < c->nrows; i++)
		decode_row(c, r, &c->rows[i]);
	c->ngone = (int) mp_get_array(r);
	c->gone = palloc_array(Row, c->ngone + 1);
	for (i = 0; i < c->ngone; i++)
		decode_row(c, r, &c->gone[i]);
}

static void
decode(Apply *a, const char *delta, uint32 len)
{
	MpReader	r = {delta, delta + len};
	int			i;

	if (mp_get_array(&r) != MER_DELTA_FIELDS || mp_get_int(&r) != MER_DELTA_FORMAT)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("catalog delta has an unknown format")));
	if (mp_get_int(&r) != CATALOG_VERSION_NO || mp_get_int(&r) != mer_template_fingerprint())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("catalog delta was made by another version of PostgreSQL or of the extension"),
				 errhint("Start the cluster with the version that wrote it.")));
	if ((Oid) mp_get_int(&r) != MyDatabaseId)
		mp_malformed("catalog delta of another database");
	a->ncatalogs = (int) mp_get_array(&r);
	a->catalogs = palloc0(sizeof(Catalog) * (a->ncatalogs + 1));
	for (i = 0; i < a->ncatalogs; i++)
		decode_catalog(&a->catalogs[i], &r);
	if (r.p != r.end)
		mp_malformed("catalog delta has a tail");
}

/* ---------- finding the rows that go ---------- */

static void
key_condition(Catalog *c, AttrNumber att, const Row *row, ScanKey key)
{
	Oid			typid = TupleDescAttr(RelationGetDescr(c->rel), att - 1)->atttypid;
	TypeCacheEntry *type = lookup_type_cache(typid, TYPECACHE_EQ_OPR);

	if (!OidIsValid(type->eq_opr))
		elog(ERROR, "type %u of a catalog key has no equality", typid);
	ScanKeyInit(key, att, BTEqualStrategyNumber, get_opcode(type->eq_opr), row->values[att - 1]);
}

static bool
same_row(Catalog *c, HeapTuple tuple, const Row *row)
{
	TupleDesc	desc = RelationGetDescr(c->rel);
	int			i;

	for (i = 0; i < c->natts; i++)
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, i + 1, desc, &isnull);

		if (isnull != row->nulls[i])
			return false;
		if (!isnull && !datum_image_eq(value, row->values[i], c->cols[i].typbyval, c->cols[i].typlen))
			return false;
	}
	return true;
}

/* The first columns of the index that finds rows of a catalog without primary key. */
static int
depender_columns(const Catalog *c, AttrNumber *attnums)
{
	bool		shared = RelationGetRelid(c->rel) == SharedDependRelationId;
	int			n = shared ? 4 : 3;
	int			i;

	for (i = 0; i < n; i++)
		attnums[i] = i + 1;
	return n;
}

/* A row like this one that this transaction has not deleted, as a copy; or NULL. */
static HeapTuple
find_row(Catalog *c, const Row *row)
{
	ScanKeyData conditions[INDEX_MAX_KEYS];
	AttrNumber	attnums[INDEX_MAX_KEYS];
	int			n = c->nkeys;
	SysScanDesc scan;
	HeapTuple	tuple;
	int			i;

	if (n > 0)
		memcpy(attnums, c->keys, sizeof(AttrNumber) * n);
	else
		n = depender_columns(c, attnums);
	for (i = 0; i < n; i++)
		key_condition(c, attnums[i], row, &conditions[i]);
	scan = systable_beginscan(c->rel, c->index, true, SnapshotSelf, n, conditions);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		if (c->nkeys > 0 || same_row(c, tuple, row))
			break;
	if (HeapTupleIsValid(tuple))
		tuple = heap_copytuple(tuple);
	systable_endscan(scan);
	return tuple;
}

/* ---------- relations that come, go or change ---------- */

static Catalog *
find_catalog(Apply *a, Oid relid)
{
	int			i;

	for (i = 0; i < a->ncatalogs; i++)
		if (a->catalogs[i].rule->relid == relid)
			return &a->catalogs[i];
	return NULL;
}

static void
collect_column(Apply *a, const Row *rows, int n, AttrNumber att)
{
	int			i;

	for (i = 0; i < n; i++)
		a->affected = lappend_oid(a->affected, DatumGetObjectId(rows[i].values[att - 1]));
}

static void
collect_affected(Apply *a)
{
	int			i;
	int			k;

	for (i = 0; i < a->ncatalogs; i++)
	{
		Catalog    *c = &a->catalogs[i];

		for (k = 0; k < MER_CATALOG_REFS; k++)
		{
			if (c->rule->refs[k].att == 0 || c->rule->refs[k].classid != RelationRelationId)
				continue;
			collect_column(a, c->rows, c->nrows, c->rule->refs[k].att);
			collect_column(a, c->gone, c->ngone, c->rule->refs[k].att);
		}
		if (c->rule->relid != RelationRelationId)
			continue;
		collect_column(a, c->rows, c->nrows, Anum_pg_class_oid);
		collect_column(a, c->gone, c->ngone, Anum_pg_class_oid);
	}
	list_sort(a->affected, list_oid_cmp);
	list_deduplicate_oid(a->affected);
}

/* As the DDL itself had them locked. */
static void
lock_relations(Apply *a)
{
	List	   *relids = NIL;

	foreach_oid(relid, a->affected)
		if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
			relids = lappend_oid(relids, relid);
	mer_apply_lock(relids);
}

static void
drop_storage(Oid relid)
{
	Relation	rel = relation_open(relid, NoLock);

	if (RELKIND_HAS_STORAGE(rel->rd_rel->relkind))
		RelationDropStorage(rel);
	pgstat_drop_relation(rel);
	relation_close(rel, NoLock);
}

static void
drop_relations(Apply *a)
{
	Catalog    *c = find_catalog(a, RelationRelationId);
	int			i;

	for (i = 0; c != NULL && i < c->ngone; i++)
	{
		Oid			relid = DatumGetObjectId(c->gone[i].values[Anum_pg_class_oid - 1]);

		if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
			continue;
		drop_storage(relid);
		RemoveStatistics(relid, 0);
		a->dropped = lappend_oid(a->dropped, relid);
	}
}

/* What ANALYZE found for them is no part of a delta. */
static void
drop_extended_statistics(Apply *a)
{
	Catalog    *c = find_catalog(a, StatisticExtRelationId);
	int			i;

	for (i = 0; c != NULL && i < c->ngone; i++)
	{
		Oid			oid = DatumGetObjectId(c->gone[i].values[Anum_pg_statistic_ext_oid - 1]);

		RemoveStatisticsDataById(oid, false);
		RemoveStatisticsDataById(oid, true);
	}
}

/* ---------- what stays this instance's own ---------- */

#define COLUMN(row, att) ((row)->values[(att) - 1])

static void
keep(Catalog *c, Row *row, const AttrNumber *attnums, int n)
{
	int			i;

	for (i = 0; i < n; i++)
		COLUMN(row, attnums[i]) = heap_getattr(row->old, attnums[i], RelationGetDescr(c->rel),
											   &row->nulls[attnums[i] - 1]);
}

static bool
has_file(char relkind, Oid am)
{
	/* Rows of our tables lie in storage; their indexes have an empty file. */
	if (relkind == RELKIND_RELATION || relkind == RELKIND_MATVIEW || relkind == RELKIND_TOASTVALUE)
		return am == HEAP_TABLE_AM_OID;
	return RELKIND_HAS_STORAGE(relkind);
}

/* File numbers are local: a new relation gets one that is free here. */
static void
give_file(Apply *a, Catalog *c, Row *row)
{
	Oid			relid = DatumGetObjectId(COLUMN(row, Anum_pg_class_oid));
	char		relkind = DatumGetChar(COLUMN(row, Anum_pg_class_relkind));
	char		persistence = DatumGetChar(COLUMN(row, Anum_pg_class_relpersistence));
	Oid			tablespace = DatumGetObjectId(COLUMN(row, Anum_pg_class_reltablespace));
	RelFileLocator locator;

	locator.spcOid = OidIsValid(tablespace) ? tablespace : MyDatabaseTableSpace;
	locator.dbOid = MyDatabaseId;
	locator.relNumber = GetNewRelFileNumber(locator.spcOid, c->rel, persistence);
	COLUMN(row, Anum_pg_class_relfilenode) = ObjectIdGetDatum(locator.relNumber);
	if (!has_file(relkind, DatumGetObjectId(COLUMN(row, Anum_pg_class_relam))))
		return;
	(void) RelationCreateStorage(locator, persistence, true);
	if (relkind == RELKIND_SEQUENCE)
		a->sequences = lappend_oid(a->sequences, relid);
	if (TransactionIdIsNormal(DatumGetTransactionId(COLUMN(row, Anum_pg_class_relfrozenxid))))
	{
		COLUMN(row, Anum_pg_class_relfrozenxid) = TransactionIdGetDatum(RecentXmin);
		COLUMN(row, Anum_pg_class_relminmxid) = TransactionIdGetDatum(GetOldestMultiXactId());
	}
}

static void
localise_class(Apply *a, Catalog *c, Row *row)
{
	static const AttrNumber own[] = {
		Anum_pg_class_relpages, Anum_pg_class_reltuples, Anum_pg_class_relallvisible,
		Anum_pg_class_relallfrozen, Anum_pg_class_relfrozenxid, Anum_pg_class_relminmxid,
		Anum_pg_class_relfilenode, Anum_pg_class_reltablespace
	};

	if (row->old != NULL)
	{
		/*
		 * TRUNCATE and rewrites change the file where they run.  Here the file
		 * of an index is empty anyway and a sequence's is not read.
		 */
		keep(c, row, own, lengthof(own));
		if (((Form_pg_class) GETSTRUCT(row->old))->relhasindex)
			COLUMN(row, Anum_pg_class_relhasindex) = BoolGetDatum(true);
	}
	else if (RELKIND_HAS_STORAGE(DatumGetChar(COLUMN(row, Anum_pg_class_relkind))))
		give_file(a, c, row);
}

/*
 * Statistics hold values of the column's type.  Where the column was changed or
 * dropped they went with it; here they may be of an ANALYZE before that.
 */
static void
forget_statistics(Catalog *c, const Row *row)
{
	Form_pg_attribute old;

	if (row->old == NULL)
		return;
	old = (Form_pg_attribute) GETSTRUCT(row->old);
	if (old->atttypid != DatumGetObjectId(COLUMN(row, Anum_pg_attribute_atttypid)) ||
		old->atttypmod != DatumGetInt32(COLUMN(row, Anum_pg_attribute_atttypmod)) ||
		old->attcollation != DatumGetObjectId(COLUMN(row, Anum_pg_attribute_attcollation)))
		RemoveStatistics(old->attrelid, old->attnum);
}

static void
note_owner(List **owners, const Row *row, AttrNumber att)
{
	*owners = list_append_unique_oid(*owners, DatumGetObjectId(COLUMN(row, att)));
}

static void
localise(Apply *a, Catalog *c, Row *row)
{
	static const AttrNumber database[] = {
		Anum_pg_database_datfrozenxid, Anum_pg_database_datminmxid
	};
	Oid			relid = RelationGetRelid(c->rel);

	if (relid == RelationRelationId)
		localise_class(a, c, row);
	else if (relid == DatabaseRelationId && row->old != NULL)
		keep(c, row, database, lengthof(database));
	else if (relid == AttributeRelationId)
		forget_statistics(c, row);
	else if (relid == IndexRelationId)
		note_owner(&a->indexed, row, Anum_pg_index_indrelid);
	else if (relid == TriggerRelationId)
		note_owner(&a->triggered, row, Anum_pg_trigger_tgrelid);
	else if (relid == RewriteRelationId)
		note_owner(&a->ruled, row, Anum_pg_rewrite_ev_class);
}

/* ---------- applying ---------- */

static void
delete_rows(Catalog *c)
{
	int			i;

	for (i = 0; i < c->ngone; i++)
	{
		HeapTuple	old = find_row(c, &c->gone[i]);

		if (old != NULL)
			CatalogTupleDelete(c->rel, &old->t_self);
	}
	for (i = 0; i < c->nrows && c->nkeys > 0; i++)
	{
		c->rows[i].old = find_row(c, &c->rows[i]);
		if (c->rows[i].old != NULL)
			CatalogTupleDelete(c->rel, &c->rows[i].old->t_self);
	}
}

static void
insert_rows(Apply *a, Catalog *c)
{
	CatalogIndexState indexes = CatalogOpenIndexes(c->rel);
	int			i;

	for (i = 0; i < c->nrows; i++)
	{
		HeapTuple	tuple;

		localise(a, c, &c->rows[i]);
		tuple = heap_form_tuple(RelationGetDescr(c->rel), c->rows[i].values, c->rows[i].nulls);
		CatalogTupleInsertWithInfo(c->rel, tuple, indexes);
		heap_freetuple(tuple);
	}
	CatalogCloseIndexes(indexes);
}

/*
 * That a table has indexes, triggers or rules is set in place, or only where it
 * is not set yet, and ANALYZE resets it in place where it runs: rows of a delta
 * do not always tell.  flag: offset in pg_class.
 */
static void
set_flag(List *relids, Size flag)
{
	Relation	rel = table_open(RelationRelationId, RowExclusiveLock);

	foreach_oid(relid, relids)
	{
		HeapTuple	tuple = SearchSysCacheCopy1(RELOID, ObjectIdGetDatum(relid));
		bool	   *set;

		if (!HeapTupleIsValid(tuple))
			continue;
		set = (bool *) ((char *) GETSTRUCT(tuple) + flag);
		if (!*set)
		{
			*set = true;
			CatalogTupleUpdate(rel, &tuple->t_self, tuple);
			CommandCounterIncrement();
		}
		heap_freetuple(tuple);
	}
	table_close(rel, RowExclusiveLock);
}

static void
finish(Apply *a)
{
	ListCell   *cell;

	foreach(cell, a->dropped)
		RelationForgetRelation(lfirst_oid(cell));
	CommandCounterIncrement();
	foreach(cell, a->sequences)
		mer_fill_sequence_file(lfirst_oid(cell));
	set_flag(a->indexed, offsetof(FormData_pg_class, relhasindex));
	set_flag(a->triggered, offsetof(FormData_pg_class, relhastriggers));
	set_flag(a->ruled, offsetof(FormData_pg_class, relhasrules));
	foreach(cell, a->affected)
		if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(lfirst_oid(cell))))
			CacheInvalidateRelcacheByRelid(lfirst_oid(cell));
	if (find_catalog(a, PublicationRelationId) != NULL)
		CacheInvalidateRelcacheAll();
	CommandCounterIncrement();
}

/* May be rolled back and run again. */
static void
apply_rows(void *arg)
{
	Apply	   *a = arg;
	int			i;

	a->dropped = a->sequences = a->indexed = a->triggered = a->ruled = NIL;
	drop_relations(a);
	drop_extended_statistics(a);
	for (i = 0; i < a->ncatalogs; i++)
		delete_rows(&a->catalogs[i]);
	for (i = 0; i < a->ncatalogs; i++)
		insert_rows(a, &a->catalogs[i]);
	finish(a);
}

void
mer_catalog_apply(const char *delta, uint32 len, int kind)
{
	Apply		a = {0};
	int			i;

	decode(&a, delta, len);
	collect_affected(&a);
	if (kind != MER_REACH_ADDITIVE)
		lock_relations(&a);
	mer_apply_insist(apply_rows, &a);
	for (i = 0; i < a.ncatalogs; i++)
		table_close(a.catalogs[i].rel, NoLock);
}
