/*
 * statimport.c
 *	  Take over the statistics that ANALYZE has found at another instance.
 *
 * Which of them an instance has is in its state table: a stamp per unit, written
 * in the same transaction as the rows.  So it does not matter how often the
 * manager asks, nor what it missed.  Nobody is waited for: a table that is being
 * analysed or altered here is left for the next time.
 */
#include "statistics.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/catversion.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_statistic.h"
#include "catalog/pg_statistic_ext.h"
#include "catalog/pg_statistic_ext_data.h"
#include "commands/vacuum.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "catdelta.h"
#include "coherence.h"
#include "state.h"
#include "wire.h"

#define PAGE_BYTES (4 * 1024 * 1024)

PG_FUNCTION_INFO_V1(mer_import_statistics);

typedef struct Head
{
	MerUnit		unit;
	int64		stamp;
	int64		pages;
	int64		rows;
} Head;

/* ---------- stamps ---------- */

static const char *
stamp_name(MerUnit unit)
{
	return psprintf("statistics %u %u", unit.classid, unit.oid);
}

int64
mer_statistics_stamp(MerUnit unit)
{
	return mer_state_get(stamp_name(unit));
}

void
mer_statistics_set_stamp(MerUnit unit, int64 stamp)
{
	mer_state_set(stamp_name(unit), stamp);
}

/* ---------- reading ---------- */

typedef void (*RowReader) (MpReader *row, const char *key, uint32 len, void *arg);

/* All rows between two keys, as of this transaction's tau_start. */
static void
read_all(int64 sid, const char *lo, const char *hi, int ncols, const char *filter, int filter_len,
		 RowReader reader, void *arg)
{
	static const AttrNumber columns[HEAD_COLUMNS] = {1, 2, 3, 4};
	MerRequest	request = {
		.sid = sid,.lo = lo,.lo_len = lo ? MER_UNIT_BYTES : 0,.hi = hi,
		.hi_len = hi ? MER_UNIT_BYTES : 0,.cols = columns,.ncols = ncols,
		.filter = filter,.filter_len = filter_len,.page_bytes = PAGE_BYTES,.any_version = true
	};
	bool		more = true;

	while (more)
	{
		MerReply	reply = mer_wire_wait(mer_send_scan(&request));
		uint32		n;

		if (reply.type != MER_RESULT)
			mp_malformed("not an answer to SCAN");
		mer_txn_saw_tau(mp_get_int(&reply.body));
		more = mp_get_bool(&reply.body);
		n = mp_get_array(&reply.body);
		more = more && n > 0;
		while (n-- > 0)
		{
			uint32		len;
			const char *key;

			if ((int) mp_get_array(&reply.body) != ncols + 1)
				mp_malformed("row of another width");
			key = mp_get_bytes(&reply.body, &len);
			reader(&reply.body, key, len, arg);
			if (n > 0 || !more)
				continue;
			request.lo = memcpy(palloc(len), key, len);
			request.lo_len = len;
			request.lo_exclusive = true;
		}
		pfree(reply.frame);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
read_head(MpReader *row, const char *key, uint32 len, void *arg)
{
	List	  **heads = arg;
	Head	   *head = palloc(sizeof(Head));
	uint32		part;

	if (len != MER_UNIT_BYTES)
		mp_malformed("key of statistics of another length");
	memcpy(&part, key, sizeof(part));
	head->unit.classid = pg_ntoh32(part);
	memcpy(&part, key + sizeof(part), sizeof(part));
	head->unit.oid = pg_ntoh32(part);
	head->stamp = mp_get_int(row);
	(void) mp_get_int(row);
	head->pages = mp_get_int(row);
	head->rows = mp_get_int(row);
	*heads = lappend(*heads, head);
}

/* Those whose transaction began after this time. */
static List *
read_heads(int64 since)
{
	List	   *heads = NIL;
	StringInfoData filter;

	initStringInfo(&filter);
	mp_put_array(&filter, 4);
	mp_put_int(&filter, 6);		/* compare: column > value */
	mp_put_int(&filter, HEAD_TAU);
	mp_put_int(&filter, 5);
	mp_put_int(&filter, since);
	read_all(MER_HEADS_SID, NULL, NULL, HEAD_COLUMNS, since > 0 ? filter.data : NULL, filter.len,
			 read_head, &heads);
	return heads;
}

/* ---------- one unit ---------- */

typedef struct Import
{
	Head	   *head;
	Relation	catalog;
	MerColumn  *cols;
	List	   *tuples;
	bool		busy;
	bool		taken;
} Import;

/* The column is of the type that its statistics are of; the row is decoded that far. */
static bool
fits(Import *import, HeapTuple tuple, Oid type)
{
	Form_pg_statistic form = (Form_pg_statistic) GETSTRUCT(tuple);

	if (RelationGetRelid(import->catalog) != StatisticRelationId)
		return true;
	return OidIsValid(type) && get_atttype(form->starelid, form->staattnum) == type;
}

/* What another version of the format or of PostgreSQL wrote is left out: ANALYZE finds it again. */
static void
read_row(MpReader *row, const char *key, uint32 len, void *arg)
{
	Import	   *import = arg;
	TupleDesc	desc = RelationGetDescr(import->catalog);
	uint32		size;
	const char *value = mp_get_bytes(row, &size);
	MpReader	r = {value, value + size};
	Datum	   *values = palloc(sizeof(Datum) * desc->natts);
	bool	   *nulls = palloc(sizeof(bool) * desc->natts);
	HeapTuple	tuple;
	Oid			type;

	if (mp_get_array(&r) != 5 || mp_get_int(&r) != MER_STATISTICS_FORMAT ||
		mp_get_int(&r) != CATALOG_VERSION_NO || mp_get_int(&r) != RelationGetRelid(import->catalog))
		return;
	type = (Oid) mp_get_int(&r);
	if ((int) mp_get_array(&r) != desc->natts)
		mp_malformed("row of statistics of another width");
	for (int i = 0; i < desc->natts; i++)
		values[i] = mer_value_get(&r, &import->cols[i], &nulls[i]);
	tuple = heap_form_tuple(desc, values, nulls);
	if (fits(import, tuple, type))
		import->tuples = lappend(import->tuples, tuple);
}

static void
replace_rows(Import *import)
{
	bool		columns = RelationGetRelid(import->catalog) == StatisticRelationId;
	Oid			index = columns ? StatisticRelidAttnumInhIndexId : StatisticExtDataStxoidInhIndexId;
	CatalogIndexState indexes = CatalogOpenIndexes(import->catalog);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	/* The first column of both is the unit. */
	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(import->head->unit.oid));
	scan = systable_beginscan(import->catalog, index, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		CatalogTupleDelete(import->catalog, &tuple->t_self);
	systable_endscan(scan);
	foreach_ptr(HeapTupleData, new, import->tuples)
		CatalogTupleInsertWithInfo(import->catalog, new, indexes);
	CatalogCloseIndexes(indexes);
}

/* In place, as ANALYZE does: the row of pg_class may be another's to change. */
static void
set_sizes(Import *import)
{
	Relation	rel = relation_open(import->head->unit.oid, NoLock);
	Form_pg_class form = rel->rd_rel;

	if (form->relkind != RELKIND_INDEX)
		vac_update_relstats(rel, (BlockNumber) import->head->pages, (double) import->head->rows,
							form->relallvisible, form->relallfrozen, form->relhasindex,
							InvalidTransactionId, InvalidMultiXactId, NULL, NULL, true);
	relation_close(rel, NoLock);
}

static Oid
table_of(MerUnit unit)
{
	HeapTuple	tuple;
	Oid			relid;

	if (unit.classid == RelationRelationId)
		return unit.oid;
	tuple = SearchSysCache1(STATEXTOID, ObjectIdGetDatum(unit.oid));
	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	relid = ((Form_pg_statistic_ext) GETSTRUCT(tuple))->stxrelid;
	ReleaseSysCache(tuple);
	return relid;
}

static void
import_unit(void *arg)
{
	Import	   *import = arg;
	MerUnit		unit = import->head->unit;
	bool		columns = unit.classid == RelationRelationId;
	Oid			relid = table_of(unit);
	char		lo[MER_UNIT_BYTES];
	char		hi[MER_UNIT_BYTES];

	import->tuples = NIL;
	import->taken = false;
	import->busy = OidIsValid(relid) && !ConditionalLockRelationOid(relid, ShareUpdateExclusiveLock);
	if (import->busy || !SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
		return;
	import->catalog = table_open(columns ? StatisticRelationId : StatisticExtDataRelationId,
								 RowExclusiveLock);
	import->cols = mer_catalog_columns(RelationGetDescr(import->catalog));
	mer_unit_key(unit, lo);
	mer_unit_key((MerUnit) {unit.classid, unit.oid + 1}, hi);
	read_all(MER_ROWS_SID, lo, hi, 1, NULL, 0, read_row, import);
	replace_rows(import);
	table_close(import->catalog, RowExclusiveLock);
	mer_statistics_set_stamp(unit, import->head->stamp);
	if (columns)
		set_sizes(import);
	CacheInvalidateRelcacheByRelid(relid);
	CommandCounterIncrement();
	import->taken = true;
}

/* ---------- all of them ---------- */

/*
 * import_statistics(since, most): take over what was written after this tau, at
 * most so many units.  How many were taken, how many are left, and as of when.
 */
Datum
mer_import_statistics(PG_FUNCTION_ARGS)
{
	int32		most = PG_GETARG_INT32(1);
	int32		taken = 0;
	int32		left = 0;
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3] = {false, false, false};

	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to import statistics")));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	mer_statistics_importing();
	foreach_ptr(Head, head, read_heads(PG_GETARG_INT64(0)))
	{
		Import		import = {.head = head};

		if (mer_statistics_stamp(head->unit) == head->stamp)
			continue;
		if (taken >= most || !mer_apply_attempt(import_unit, &import) || import.busy)
			left++;
		else if (import.taken)
			taken++;
	}
	values[0] = Int32GetDatum(taken);
	values[1] = Int32GetDatum(left);
	values[2] = Int64GetDatum(mer_tau_start());
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
