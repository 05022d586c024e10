/*
 * catcapture.c
 *	  Take the catalog delta of the running transaction: all catalog rows it
 *	  has written or deleted, those of rolled back subtransactions and of
 *	  temporary objects left out.
 *
 * The server counts for each relation what a transaction writes; only catalogs
 * with a count are read.  They are read whole: a row is this transaction's if
 * its xmin or xmax is.
 */
#include "catdelta.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/heaptoast.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/catversion.h"
#include "catalog/namespace.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_statistic_ext.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "reach.h"
#include "store.h"

/* Of oids.c; tests of deltas alone do without. */
extern bool mer_oid_leased(Oid oid) __attribute__((weak));

typedef struct Object
{
	Oid			classid;
	Oid			oid;
} Object;

/* One row of a delta, born or gone. */
typedef struct DeltaRow
{
	char	   *key;			/* encoded primary key; the whole row where there is none */
	uint32		key_len;
	char	   *row;
	uint32		row_len;
	HeapTuple	tuple;
	HeapTuple	before;			/* of a row born: the one it replaces */
} DeltaRow;

typedef struct Capture
{
	HTAB	   *temporary;		/* temporary objects met so far */
	MerReach   *reach;
	const MerCatalogRule *rule;
	Relation	rel;
	MerColumn  *cols;
	int			nkeys;
	AttrNumber	keys[INDEX_MAX_KEYS];
	Datum	   *values;
	bool	   *nulls;
	DeltaRow   *born;
	int			nborn;
	int			max_born;
	DeltaRow   *gone;
	int			ngone;
	int			max_gone;
	int			nreplaced;		/* rows gone and born under one key */
} Capture;

/* ---------- temporary objects ---------- */

static bool
schema_of_class_is_temporary(int cache, Oid oid, AttrNumber att)
{
	HeapTuple	tuple = SearchSysCache1(cache, ObjectIdGetDatum(oid));
	Oid			schema;

	if (!HeapTupleIsValid(tuple))
		return false;
	schema = DatumGetObjectId(SysCacheGetAttrNotNull(cache, tuple, att));
	ReleaseSysCache(tuple);
	return isAnyTempNamespace(schema);
}

static Oid
relation_of_statistics(Oid oid)
{
	HeapTuple	tuple = SearchSysCache1(STATEXTOID, ObjectIdGetDatum(oid));
	Oid			relid;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	relid = ((Form_pg_statistic_ext) GETSTRUCT(tuple))->stxrelid;
	ReleaseSysCache(tuple);
	return relid;
}

static bool
is_temporary(Capture *c, Oid classid, Oid oid)
{
	Object		key = {classid, oid};

	if (!OidIsValid(oid))
		return false;
	if (hash_search(c->temporary, &key, HASH_FIND, NULL) != NULL)
		return true;
	switch (classid)
	{
		case NamespaceRelationId:
			return isAnyTempNamespace(oid);
		case RelationRelationId:
			return schema_of_class_is_temporary(RELOID, oid, Anum_pg_class_relnamespace);
		case TypeRelationId:
			return schema_of_class_is_temporary(TYPEOID, oid, Anum_pg_type_typnamespace);
		case ProcedureRelationId:
			return schema_of_class_is_temporary(PROCOID, oid, Anum_pg_proc_pronamespace);
		case StatisticExtRelationId:
			return schema_of_class_is_temporary(RELOID, relation_of_statistics(oid), Anum_pg_class_relnamespace);
		default:
			return false;
	}
}

static bool
has_temporary_name(const char *name)
{
	return strncmp(name, "pg_temp_", 8) == 0 || strncmp(name, "pg_toast_temp_", 14) == 0;
}

static bool
row_is_temporary(Capture *c)
{
	const MerCatalogRule *rule = c->rule;
	bool		temporary = false;
	int			i;

	if (rule->relid == NamespaceRelationId)
		temporary = has_temporary_name(NameStr(*DatumGetName(c->values[Anum_pg_namespace_nspname - 1])));
	for (i = 0; i < MER_CATALOG_REFS && !temporary && rule->refs[i].att != 0; i++)
	{
		const MerCatalogRef *ref = &rule->refs[i];
		Oid			classid = ref->class_att != 0
			? DatumGetObjectId(c->values[ref->class_att - 1]) : ref->classid;

		temporary = is_temporary(c, classid, DatumGetObjectId(c->values[ref->att - 1]));
	}
	if (temporary && strcmp(NameStr(TupleDescAttr(RelationGetDescr(c->rel), 0)->attname), "oid") == 0)
	{
		Object		key = {rule->relid, DatumGetObjectId(c->values[0])};

		(void) hash_search(c->temporary, &key, HASH_ENTER, NULL);
	}
	return temporary;
}

/* ---------- one catalog ---------- */

static void
encode_columns(Capture *c, StringInfo buf, const AttrNumber *attnums, int n)
{
	int			i;

	mp_put_array(buf, n);
	for (i = 0; i < n; i++)
	{
		int			at = attnums != NULL ? attnums[i] - 1 : i;

		mer_value_put(buf, &c->cols[at], c->values[at], c->nulls[at]);
	}
}

static DeltaRow *
add_row(DeltaRow **rows, int *n, int *max)
{
	if (*n == *max)
	{
		*max = *max ? *max * 2 : 64;
		*rows = *rows ? repalloc_array(*rows, DeltaRow, *max) : palloc_array(DeltaRow, *max);
	}
	return &(*rows)[(*n)++];
}

static void
add_tuple(Capture *c, HeapTuple tuple, bool born)
{
	TupleDesc	desc = RelationGetDescr(c->rel);
	StringInfoData buf;
	DeltaRow   *r;

	tuple = HeapTupleHasExternal(tuple) ? toast_flatten_tuple(tuple, desc) : heap_copytuple(tuple);
	heap_deform_tuple(tuple, desc, c->values, c->nulls);
	if (row_is_temporary(c))
		return;
	r = born ? add_row(&c->born, &c->nborn, &c->max_born)
		: add_row(&c->gone, &c->ngone, &c->max_gone);
	initStringInfo(&buf);
	encode_columns(c, &buf, c->nkeys > 0 ? c->keys : NULL, c->nkeys > 0 ? c->nkeys : desc->natts);
	r->key = buf.data;
	r->key_len = (uint32) buf.len;
	initStringInfo(&buf);
	encode_columns(c, &buf, NULL, desc->natts);
	r->row = buf.data;
	r->row_len = (uint32) buf.len;
	r->tuple = tuple;
	r->before = NULL;
}

static int
compare_keys(const void *a, const void *b)
{
	const DeltaRow *x = a;
	const DeltaRow *y = b;
	int			order = memcmp(x->key, y->key, Min(x->key_len, y->key_len));

	if (order != 0)
		return order;
	return x->key_len == y->key_len ? 0 : x->key_len < y->key_len ? -1 : 1;
}

/* A row gone and born under one key has changed: only the new row counts. */
static void
drop_replaced(Capture *c)
{
	int			i = 0;
	int			j;
	int			kept = 0;

	qsort(c->born, c->nborn, sizeof(DeltaRow), compare_keys);
	qsort(c->gone, c->ngone, sizeof(DeltaRow), compare_keys);
	if (c->nkeys == 0)
		return;
	for (j = 0; j < c->ngone; j++)
	{
		while (i < c->nborn && compare_keys(&c->born[i], &c->gone[j]) < 0)
			i++;
		if (i < c->nborn && compare_keys(&c->born[i], &c->gone[j]) == 0)
		{
			c->born[i].before = c->gone[j].tuple;
			continue;
		}
		c->gone[kept++] = c->gone[j];
	}
	c->nreplaced = c->ngone - kept;
	c->ngone = kept;
}

static bool
deleted_by_us(HeapTupleHeader header)
{
	if ((header->t_infomask & HEAP_XMAX_INVALID) || HEAP_XMAX_IS_LOCKED_ONLY(header->t_infomask))
		return false;
	return TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetUpdateXid(header));
}

static void
read_catalog(Capture *c)
{
	SysScanDesc scan = systable_beginscan(c->rel, InvalidOid, false, SnapshotAny, 0, NULL);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		born = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
		bool		gone = deleted_by_us(tuple->t_data);

		if (born != gone)
			add_tuple(c, tuple, born);
	}
	systable_endscan(scan);
}

static void
refuse_unshippable(Capture *c)
{
	if (c->rule->mode == MERCAT_REFUSED && c->nborn + c->ngone > 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("changes of \"%s\" are not supported", RelationGetRelationName(c->rel)),
				 errhint("They would stay in one query processor's instance.")));

	/* ALTER DATABASE changes a row; a new or lost row is a directory. */
	if (c->rule->relid == DatabaseRelationId && (c->ngone > 0 || c->nborn > c->nreplaced))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a cluster has one database"),
				 errhint("Use schemas.")));
}

/*
 * Another instance may give the same number to an object of its own, if it does
 * not come from this one's ranges.
 */
static void
check_oid(Capture *c, HeapTuple tuple)
{
	bool		isnull;
	Oid			oid = DatumGetObjectId(heap_getattr(tuple, 1, RelationGetDescr(c->rel), &isnull));

	if (!mer_oid_leased(oid))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("object id %u in \"%s\" lies outside of the ranges of this instance",
						oid, RelationGetRelationName(c->rel)),
				 errhint("Retry the transaction, in parts if it makes many thousands of objects.")));
}

static void
note_reach(Capture *c)
{
	TupleDesc	desc = RelationGetDescr(c->rel);
	bool		has_oid = strcmp(NameStr(TupleDescAttr(desc, 0)->attname), "oid") == 0;
	int			i;

	for (i = 0; i < c->nborn; i++)
	{
		if (has_oid && c->born[i].before == NULL && mer_oid_leased != NULL)
			check_oid(c, c->born[i].tuple);
		mer_reach_row(c->reach, c->rule, desc, c->born[i].before, c->born[i].tuple);
	}
	for (i = 0; i < c->ngone; i++)
		mer_reach_row(c->reach, c->rule, desc, c->gone[i].tuple, NULL);
}

static void
put_catalog(Capture *c, StringInfo out)
{
	int			i;

	mp_put_array(out, 4);
	mp_put_int(out, c->rule->relid);
	mp_put_int(out, RelationGetDescr(c->rel)->natts);
	mp_put_array(out, c->nborn);
	for (i = 0; i < c->nborn; i++)
		appendBinaryStringInfo(out, c->born[i].row, (int) c->born[i].row_len);
	mp_put_array(out, c->ngone);
	for (i = 0; i < c->ngone; i++)
		appendBinaryStringInfo(out, c->gone[i].row, (int) c->gone[i].row_len);
}

/* Leaves it open. */
static void
read_changes(Capture *c, Oid relid)
{
	int			natts;
	Oid			index;

	c->rel = table_open(relid, AccessShareLock);
	natts = RelationGetDescr(c->rel)->natts;
	c->cols = mer_catalog_columns(RelationGetDescr(c->rel));
	c->nkeys = mer_catalog_key(c->rel, c->keys, &index);
	c->values = palloc(sizeof(Datum) * natts);
	c->nulls = palloc(sizeof(bool) * natts);
	c->nborn = c->ngone = c->max_born = c->max_gone = c->nreplaced = 0;
	c->born = c->gone = NULL;
	read_catalog(c);
	drop_replaced(c);
}

/* True if the catalog has anything to ship; it is appended then. */
static bool
capture_catalog(Capture *c, Oid relid, StringInfo out)
{
	bool		any;

	read_changes(c, relid);
	refuse_unshippable(c);
	note_reach(c);
	any = c->nborn + c->ngone > 0;
	if (any)
		put_catalog(c, out);
	table_close(c->rel, AccessShareLock);
	return any;
}

/*
 * Could this session have written the relation since its counters were last
 * reported (which happens between transactions only)?
 */
bool
mer_catalog_maybe_written(Oid relid)
{
	PgStat_TableStatus *status;
	bool		written;

	if (!pgstat_track_counts)
		return true;
	status = find_tabstat_entry(relid);
	if (status == NULL)
		return false;
	written = status->counts.tuples_inserted + status->counts.tuples_updated +
		status->counts.tuples_deleted > 0;
	pfree(status);
	return written;
}

static void
begin_capture(Capture *c)
{
	HASHCTL		ctl = {.keysize = sizeof(Object),.entrysize = sizeof(Object)};

	ctl.hcxt = CurrentMemoryContext;
	c->temporary = hash_create("temporary objects", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

void
mer_catalog_changes(Oid relid, MerCatalogChange callback, void *arg)
{
	Capture		c = {.rule = mer_catalog_rule(relid)};
	int			i;

	begin_capture(&c);
	read_changes(&c, relid);
	for (i = 0; i < c.ngone; i++)
	{
		MerBytes	none = {NULL, 0};

		callback(arg, c.rel, c.gone[i].tuple, &(MerBytes) {c.gone[i].key, c.gone[i].key_len}, &none);
	}
	for (i = 0; i < c.nborn; i++)
		callback(arg, c.rel, c.born[i].tuple, &(MerBytes) {c.born[i].key, c.born[i].key_len},
				 &(MerBytes) {c.born[i].row, c.born[i].row_len});
	table_close(c.rel, AccessShareLock);
	hash_destroy(c.temporary);
}

bool
mer_catalog_capture(StringInfo out, MerReach *reach, bool *secret)
{
	Capture		c = {0};
	StringInfoData body;
	uint32		n = 0;
	int			i;

	*secret = false;
	mer_reach_init(reach);
	c.reach = reach;
	if (!TransactionIdIsValid(GetTopTransactionIdIfAny()))
		return false;
	begin_capture(&c);
	initStringInfo(&body);
	for (i = 0; i < mer_catalog_nrules; i++)
	{
		Oid			relid = mer_catalog_relid(&mer_catalog_rules[i]);

		c.rule = &mer_catalog_rules[i];
		if (!OidIsValid(relid) || c.rule->mode == MERCAT_LOCAL || !mer_catalog_maybe_written(relid))
			continue;
		if (!capture_catalog(&c, relid, &body))
			continue;
		n++;
		*secret = *secret || relid == AuthIdRelationId;
	}
	hash_destroy(c.temporary);
	if (n == 0)
		return false;
	mp_put_array(out, MER_DELTA_FIELDS);
	mp_put_int(out, MER_DELTA_FORMAT);
	mp_put_int(out, CATALOG_VERSION_NO);
	mp_put_int(out, mer_template_fingerprint());
	mp_put_int(out, MyDatabaseId);
	mp_put_array(out, n);
	appendBinaryStringInfo(out, body.data, body.len);
	return true;
}
