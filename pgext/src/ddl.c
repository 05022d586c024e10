/*
 * ddl.c
 *	  Storage follows the catalog: what the object access hook sees of DDL.
 *
 * No path makes a relation that is local by accident: the hook refuses, for
 * every creation however it came about, rows or entries that would lie in files
 * of this instance without being temporary.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/tupdesc_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/indexing.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_statistic_ext.h"
#include "commands/defrem.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/relfilenumbermap.h"
#include "utils/syscache.h"

#include "coherence.h"
#include "statistics.h"
#include "utility.h"

#define OP_ADD 7

typedef struct AddedColumn
{
	SubTransactionId subxact;
	Oid			relid;
	AttrNumber	attnum;
	int64		sid;
} AddedColumn;

typedef struct Truncated
{
	SubTransactionId subxact;
	Oid			relid;
} Truncated;

static object_access_hook_type prev_object_access = NULL;

/* Of the running statement; allocated in TopTransactionContext. */
static List *added_columns = NIL;
static List *truncated = NIL;

/* Second half of a swap of two relations' storage, still to be announced. */
static Oid	swap_partner = InvalidOid;

/* pg_class as this command has left it; the syscaches still show what was. */
static bool
read_pg_class_now(Oid relid, FormData_pg_class *form)
{
	Relation	pg_class = table_open(RelationRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found;

	ScanKeyInit(&key, Anum_pg_class_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relid));
	scan = systable_beginscan(pg_class, ClassOidIndexId, true, SnapshotSelf, 1, &key);
	tuple = systable_getnext(scan);
	found = HeapTupleIsValid(tuple);
	if (found)
		memcpy(form, GETSTRUCT(tuple), CLASS_TUPLE_SIZE);
	systable_endscan(scan);
	table_close(pg_class, AccessShareLock);
	return found;
}

static bool
index_may_be(const FormData_pg_class *form)
{
	bool		ours = form->relam == get_index_am_oid("btree", true);

	return form->relpersistence == RELPERSISTENCE_TEMP ? !ours : ours;
}

static bool
table_may_be(const FormData_pg_class *form)
{
	Oid			ours = get_table_am_oid("meridian", true);

	if (form->relkind == RELKIND_PARTITIONED_TABLE && !OidIsValid(form->relam))
		return true;
	if (form->relpersistence == RELPERSISTENCE_TEMP)
		return form->relam == HEAP_TABLE_AM_OID;
	return form->relpersistence == RELPERSISTENCE_PERMANENT && form->relam == ours;
}

/*
 * ALTER TYPE makes constraints of a temporary table anew from their definitions,
 * which do not name the access method.
 */
pg_noreturn static void
refuse_index(const FormData_pg_class *form)
{
	if (form->relpersistence == RELPERSISTENCE_TEMP)
		mer_refuse("a btree index on a temporary table",
				   "Use heap_btree; before ALTER TYPE, drop the constraints on the column.");
	mer_refuse("this kind of index", "Use btree.");
}

static void
check_created(Oid relid)
{
	FormData_pg_class form;

	if (mer_maintenance() || !read_pg_class_now(relid, &form))
		return;
	switch (form.relkind)
	{
		case RELKIND_RELATION:
		case RELKIND_MATVIEW:
		case RELKIND_PARTITIONED_TABLE:
			if (!table_may_be(&form))
				mer_refuse("this kind of table", "Use CREATE TABLE or CREATE TEMPORARY TABLE without USING.");
			break;
		case RELKIND_INDEX:
		case RELKIND_PARTITIONED_INDEX:
			if (form.relnamespace != PG_TOAST_NAMESPACE && !index_may_be(&form))
				refuse_index(&form);
			mer_check_note_index(relid);
			break;
		case RELKIND_FOREIGN_TABLE:
			mer_refuse("CREATE FOREIGN TABLE", NULL);
			break;
		default:
			break;
	}
}

static void
note_added(Oid relid, AttrNumber attnum)
{
	int64		sid = mer_relmap_sid(relid, true);
	MemoryContext old;
	AddedColumn *column;

	/* Composite types, partitioned tables and temporary ones have no rows in storage. */
	if (sid == 0)
		return;
	old = MemoryContextSwitchTo(TopTransactionContext);
	column = palloc(sizeof(AddedColumn));
	column->subxact = GetCurrentSubTransactionId();
	column->relid = relid;
	column->attnum = attnum;
	column->sid = sid;
	added_columns = lappend(added_columns, column);
	MemoryContextSwitchTo(old);
}

static void
note_truncated(Oid relid)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	Truncated  *table = palloc(sizeof(Truncated));

	table->subxact = GetCurrentSubTransactionId();
	table->relid = relid;
	truncated = lappend(truncated, table);
	MemoryContextSwitchTo(old);
}

/*
 * A rewrite fills a transient table and then exchanges the two relations' file
 * numbers, announcing both before the next command begins: the catalog caches
 * still know who had which.  Storage ids are exchanged with them.
 */
static void
note_altered(Oid relid)
{
	HeapTuple	before;
	FormData_pg_class now;
	Form_pg_class was;
	Oid			partner;

	if (relid == swap_partner)
	{
		swap_partner = InvalidOid;
		return;
	}
	before = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	if (!HeapTupleIsValid(before))
		return;
	was = (Form_pg_class) GETSTRUCT(before);
	if (was->relkind != RELKIND_RELATION && was->relkind != RELKIND_MATVIEW)
	{
		ReleaseSysCache(before);
		return;
	}
	if (read_pg_class_now(relid, &now) && now.relfilenode != was->relfilenode &&
		mer_relmap_sid(relid, true) != 0)
	{
		partner = RelidByRelfilenumber(now.reltablespace, now.relfilenode);
		if (!OidIsValid(partner) || mer_relmap_sid(partner, true) == 0)
			elog(ERROR, "no partner for the storage swap of relation %u", relid);
		mer_relmap_swap(relid, partner);
		mer_rewrite_swapped(relid);
		mer_check_note_rewrite(relid);
		swap_partner = partner;
	}
	ReleaseSysCache(before);
}

static void
object_access(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *arg)
{
	if (prev_object_access)
		prev_object_access(access, class_id, object_id, sub_id, arg);
	if (access == OAT_POST_CREATE)
		mer_oids_ensure(0);
	if (class_id == ConstraintRelationId && (access == OAT_POST_CREATE || access == OAT_POST_ALTER))
		mer_check_note_constraint(object_id, access == OAT_POST_ALTER);
	if (class_id == StatisticExtRelationId && access == OAT_DROP)
		mer_statistics_note_drop(class_id, object_id);
	if (class_id != RelationRelationId)
		return;
	switch (access)
	{
		case OAT_POST_CREATE:
			if (sub_id == 0)
				check_created(object_id);
			else
				note_added(object_id, (AttrNumber) sub_id);
			break;
		case OAT_POST_ALTER:
			if (sub_id == 0)
				note_altered(object_id);
			break;
		case OAT_TRUNCATE:
			note_truncated(object_id);
			break;
		case OAT_DROP:
			if (sub_id != 0)
				break;
			mer_check_note_drop(object_id);
			mer_statistics_note_drop(class_id, object_id);
			if (mer_relmap_sid(object_id, true) != 0)
				mer_relmap_drop(object_id);
			break;
		default:
			break;
	}
}

/* [7, sid, attnum, class, default]: rows from before read the default. */
static void
ship_added(const AddedColumn *column)
{
	Relation	rel = table_open(column->relid, NoLock);
	Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), column->attnum - 1);
	TupleConstr *constr = RelationGetDescr(rel)->constr;
	struct AttrMissing *missing = constr ? constr->missing : NULL;
	bool		present = missing && att->atthasmissing && missing[column->attnum - 1].am_present;
	MerColumn	col;
	StringInfoData op;

	/* A rewritten table was created anew with the column. */
	if (mer_is_table(rel) && mer_relmap_sid(column->relid, false) == column->sid)
	{
		mer_column_init(&col, att);
		initStringInfo(&op);
		mp_put_array(&op, 5);
		mp_put_int(&op, OP_ADD);
		mp_put_int(&op, column->sid);
		mp_put_int(&op, column->attnum);
		mp_put_int(&op, col.cls);
		mer_value_put(&op, &col, present ? missing[column->attnum - 1].am_value : (Datum) 0, !present);
		mer_txn_schema_op(op.data, op.len);
		pfree(op.data);
	}
	table_close(rel, NoLock);
}

void
mer_ddl_flush(void)
{
	List	   *columns = added_columns;

	added_columns = NIL;
	foreach_ptr(AddedColumn, column, columns)
		ship_added(column);
	list_free_deep(columns);
	mer_check_flush();
}

/* Of natts columns those that storage has, as far as the running statement adds some. */
int
mer_ddl_pending_natts(int64 sid, int natts)
{
	foreach_ptr(AddedColumn, column, added_columns)
	{
		if (column->sid == sid)
			natts = Min(natts, column->attnum - 1);
	}
	return natts;
}

int
mer_ddl_truncated_mark(void)
{
	return list_length(truncated);
}

List *
mer_ddl_take_truncated(int mark)
{
	List	   *relids = NIL;

	for (int i = mark; i < list_length(truncated); i++)
		relids = lappend_oid(relids, ((Truncated *) list_nth(truncated, i))->relid);
	truncated = list_truncate(truncated, mark);
	return relids;
}

static void
forget(void)
{
	added_columns = NIL;
	truncated = NIL;
	swap_partner = InvalidOid;
	mer_check_forget();
}

static void
at_xact(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
		forget();
}

/*
 * A function that the statement calls may abort a subtransaction of its own: only
 * what that one, or one below it, noted is void.
 */
static void
at_subxact(SubXactEvent event, SubTransactionId subid, SubTransactionId parent, void *arg)
{
	if (event != SUBXACT_EVENT_ABORT_SUB)
		return;
	foreach_ptr(AddedColumn, column, added_columns)
	{
		if (column->subxact >= subid)
			added_columns = foreach_delete_current(added_columns, column);
	}
	foreach_ptr(Truncated, table, truncated)
	{
		if (table->subxact >= subid)
			truncated = foreach_delete_current(truncated, table);
	}
	mer_check_forget_subxact(subid);
}

void
mer_ddl_init(void)
{
	prev_object_access = object_access_hook;
	object_access_hook = object_access;
	RegisterXactCallback(at_xact, NULL);
	RegisterSubXactCallback(at_subxact, NULL);
	mer_gate_init();
}
