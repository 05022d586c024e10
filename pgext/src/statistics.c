/*
 * statistics.c
 *	  Ship what ANALYZE has found, in the commit of the transaction it ran in.
 *
 * It makes no catalog version, for a plan may rest on old statistics and still
 * be right: nobody is disturbed.  Rows are written blind, so that two who
 * analyse one table both succeed; what commits last holds everywhere, also
 * where the other one ran.
 */
#include "statistics.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/catversion.h"
#include "catalog/pg_class.h"
#include "catalog/pg_statistic.h"
#include "catalog/pg_statistic_ext.h"
#include "catalog/pg_statistic_ext_data.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "postmaster/autovacuum.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "catdelta.h"
#include "utility.h"

typedef struct Noted
{
	MerUnit		unit;			/* hash key */
	bool		changed;
	bool		dropped;		/* that may have been rolled back */
} Noted;

static HTAB *noted = NULL;		/* of this transaction, in its memory */
static bool importing = false;

void
mer_unit_key(MerUnit unit, char *key)
{
	uint32		part = pg_hton32(unit.classid);

	memcpy(key, &part, sizeof(part));
	part = pg_hton32(unit.oid);
	memcpy(key + sizeof(part), &part, sizeof(part));
}

/* ---------- which units ---------- */

static Noted *
find_noted(MerUnit unit)
{
	return noted != NULL ? hash_search(noted, &unit, HASH_FIND, NULL) : NULL;
}

/* NULL: a catalog, whose statistics are each instance's own. */
static Noted *
note(MerUnit unit)
{
	bool		found;
	Noted	   *n;

	if (unit.oid < FirstNormalObjectId)
		return NULL;
	if (noted == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(MerUnit),.entrysize = sizeof(Noted),.hcxt = TopTransactionContext};

		noted = hash_create("meridian analysed relations", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	n = hash_search(noted, &unit, HASH_ENTER, &found);
	if (!found)
		n->changed = n->dropped = false;
	return n;
}

void
mer_statistics_note_analysed(Oid relid)
{
	Noted	   *n = note((MerUnit) {RelationRelationId, relid});

	if (n != NULL)
		n->changed = true;
}

static bool
is_analysable(Oid relid)
{
	switch (get_rel_relkind(relid))
	{
		case RELKIND_RELATION:
		case RELKIND_MATVIEW:
		case RELKIND_PARTITIONED_TABLE:
		case RELKIND_INDEX:
			return get_rel_persistence(relid) != RELPERSISTENCE_TEMP;
		default:
			return false;
	}
}

/* Called while it is still there. */
void
mer_statistics_note_drop(Oid classid, Oid oid)
{
	Noted	   *n = NULL;

	if (classid == StatisticExtRelationId || is_analysable(oid))
		n = note((MerUnit) {classid, oid});
	if (n != NULL)
		n->dropped = true;
}

void
mer_statistics_importing(void)
{
	importing = true;
}

static bool
exists(MerUnit unit)
{
	return SearchSysCacheExists1(unit.classid == RelationRelationId ? RELOID : STATEXTOID,
								 ObjectIdGetDatum(unit.oid));
}

/* ---------- rows ---------- */

typedef struct Shipment
{
	MerBuf	   *heads;
	MerBuf	   *rows;
} Shipment;

static void
put(MerBuf *buf, const char *key, uint32 klen, StringInfo row, int n, bool big)
{
	static const AttrNumber attnums[HEAD_COLUMNS] = {1, 2, 3, 4};
	MerVersion *v;

	v = mer_buf_push(buf, key, klen, row ? row->data : NULL, row ? row->len : 0,
					 row ? mer_buf_shape(buf, attnums, n, n) : NULL,
					 GetCurrentCommandId(false), true, true);
	v->has_big = big;
}

/* The type of the column that a row of pg_statistic describes; 0 for other catalogs. */
static Oid
described_type(HeapTuple tuple, Relation catalog)
{
	Form_pg_statistic form = (Form_pg_statistic) GETSTRUCT(tuple);

	if (RelationGetRelid(catalog) != StatisticRelationId)
		return InvalidOid;
	return get_atttype(form->starelid, form->staattnum);
}

static void
put_row(Shipment *s, Relation catalog, HeapTuple tuple, StringInfo key, const MerBytes *columns)
{
	StringInfoData value;
	StringInfoData row;

	initStringInfo(&value);
	mp_put_array(&value, 5);
	mp_put_int(&value, MER_STATISTICS_FORMAT);
	mp_put_int(&value, CATALOG_VERSION_NO);
	mp_put_int(&value, RelationGetRelid(catalog));
	mp_put_int(&value, described_type(tuple, catalog));
	appendBinaryStringInfo(&value, columns->data, columns->len);
	if (value.len > MER_STATISTICS_MAX_BYTES)
		ereport(WARNING,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("statistics of more than %d MiB stay in this instance",
						MER_STATISTICS_MAX_BYTES / (1024 * 1024)),
				 errhint("Lower the statistics target of the column.")));
	else
	{
		initStringInfo(&row);
		mp_put_array(&row, 1);
		mp_put_bin(&row, value.data, value.len);
		put(s->rows, key->data, key->len, &row, 1, value.len > MER_BIG_BYTES);
		pfree(row.data);
	}
	pfree(value.data);
}

static MerUnit
unit_of(Relation catalog, HeapTuple tuple)
{
	bool		isnull;
	Oid			oid = DatumGetObjectId(heap_getattr(tuple, 1, RelationGetDescr(catalog), &isnull));

	return (MerUnit) {
		RelationGetRelid(catalog) == StatisticRelationId ? RelationRelationId : StatisticExtRelationId, oid
	};
}

/* A MerCatalogChange.  What is gone with a temporary table was never shipped. */
static void
ship_row(void *arg, Relation catalog, HeapTuple tuple, const MerBytes *key, const MerBytes *row)
{
	Shipment   *s = arg;
	MerUnit		unit = unit_of(catalog, tuple);
	Noted	   *n = exists(unit) ? note(unit) : find_noted(unit);
	StringInfoData full;
	char		prefix[MER_UNIT_BYTES];

	if (n == NULL)
		return;
	n->changed = true;
	mer_unit_key(unit, prefix);
	initStringInfo(&full);
	appendBinaryStringInfo(&full, prefix, sizeof(prefix));
	appendBinaryStringInfo(&full, key->data, key->len);
	if (row->data != NULL)
		put_row(s, catalog, tuple, &full, row);
	else
		put(s->rows, full.data, full.len, NULL, 0, false);
	pfree(full.data);
}

/* ---------- heads ---------- */

static int64
new_stamp(void)
{
	uint64		stamp;

	if (!pg_strong_random(&stamp, sizeof(stamp)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate a random number")));
	return (int64) (stamp >> 1) | 1;
}

static void
sizes_of(MerUnit unit, int64 *pages, int64 *rows)
{
	HeapTuple	tuple;
	Form_pg_class form;

	*pages = 0;
	*rows = -1;
	if (unit.classid != RelationRelationId)
		return;
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(unit.oid));
	form = (Form_pg_class) GETSTRUCT(tuple);
	*pages = form->relpages;
	*rows = (int64) form->reltuples;
	ReleaseSysCache(tuple);
}

static void
ship_head(Shipment *s, MerUnit unit)
{
	char		key[MER_UNIT_BYTES];
	StringInfoData row;
	int64		stamp;
	int64		pages;
	int64		rows;

	mer_unit_key(unit, key);
	if (!exists(unit))
	{
		put(s->heads, key, sizeof(key), NULL, 0, false);
		mer_statistics_set_stamp(unit, 0);
		return;
	}
	stamp = new_stamp();
	sizes_of(unit, &pages, &rows);
	initStringInfo(&row);
	mp_put_array(&row, HEAD_COLUMNS);
	mp_put_int(&row, stamp);
	mp_put_int(&row, mer_tau_start());
	mp_put_int(&row, pages);
	mp_put_int(&row, rows);
	put(s->heads, key, sizeof(key), &row, HEAD_COLUMNS, false);
	mer_statistics_set_stamp(unit, stamp);
	pfree(row.data);
}

static void
ship(void)
{
	static const Oid catalogs[] = {StatisticRelationId, StatisticExtDataRelationId};
	Shipment	s = {
		.heads = mer_buf_get(MER_HEADS_SID, InvalidOid, false),
		.rows = mer_buf_get(MER_ROWS_SID, InvalidOid, false)
	};
	HASH_SEQ_STATUS all;
	Noted	   *n;

	/* Values out of line need a snapshot to be read under, and no statement runs now. */
	PushActiveSnapshot(GetLatestSnapshot());
	for (int i = 0; i < (int) lengthof(catalogs); i++)
		if (mer_catalog_maybe_written(catalogs[i]))
			mer_catalog_changes(catalogs[i], ship_row, &s);
	if (noted != NULL)
	{
		hash_seq_init(&all, noted);
		while ((n = hash_seq_search(&all)) != NULL)
			if (exists(n->unit) ? n->changed : n->dropped)
				ship_head(&s, n->unit);
		mer_statistics_tell();
	}
	PopActiveSnapshot();
}

/* ---------- when ---------- */

static bool
ships(void)
{
	if (importing || !IsUnderPostmaster || !IsNormalProcessingMode() ||
		AmAutoVacuumWorkerProcess() || mer_maintenance())
		return false;
	return noted != NULL ||
		(TransactionIdIsValid(GetTopTransactionIdIfAny()) &&
		 (mer_catalog_maybe_written(StatisticRelationId) ||
		  mer_catalog_maybe_written(StatisticExtDataRelationId)));
}

static void
at_transaction_event(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_COMMIT)
	{
		if (ships())
			mer_txn_at_precommit(ship);
	}
	else if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
	{
		noted = NULL;
		importing = false;
	}
}

void
mer_statistics_init(void)
{
	RegisterXactCallback(at_transaction_event, NULL);
}
